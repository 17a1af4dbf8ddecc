"""What a run reports: events, curves, throughput, messages, and the samples that could not be read."""
