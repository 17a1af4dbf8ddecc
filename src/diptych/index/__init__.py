"""Vectors with keys and metadata, on disk, and search among them. It knows no model."""
