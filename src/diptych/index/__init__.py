"""Store vectors with keys and metadata in a folder or in PostgreSQL, and search them. This package does not use a model."""
