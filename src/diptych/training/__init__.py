"""Training: one config, one loop, one run folder."""
