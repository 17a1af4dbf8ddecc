"""Inference with a trained model: embeddings, similarity, zero-shot classification and ranking."""
