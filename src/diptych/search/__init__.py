"""Keep an index in sync with folders of pictures, group similar hits, and find duplicates."""
