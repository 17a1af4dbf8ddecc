"""Training: config, loop and run folder."""
