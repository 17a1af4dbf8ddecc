"""Reports of a run: events, curves, throughput, messages, diagnosis, and skipped samples."""
