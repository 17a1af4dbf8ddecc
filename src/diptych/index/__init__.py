"""Vectors with keys and metadata, in a folder or in PostgreSQL, and search among them. It knows no model."""
