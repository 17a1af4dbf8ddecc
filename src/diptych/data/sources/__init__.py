"""Sources: read each supported layout of images and captions as a sequence of samples."""
