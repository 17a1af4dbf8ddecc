"""Select the rows of each training step and load them in worker processes."""
