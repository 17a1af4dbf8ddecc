"""CLIP models: the image towers, the text tower and the module that joins them."""
