"""Contrastive, sigmoid and distillation losses as pure functions of embeddings."""
