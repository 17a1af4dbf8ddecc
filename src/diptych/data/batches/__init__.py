"""From rows to batches: which rows each step sees, and the workers that read them."""
