"""Read images and captions from many sources and turn them into training batches."""
