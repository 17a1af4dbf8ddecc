"""Using a model: embeddings, and the four things they are for."""
