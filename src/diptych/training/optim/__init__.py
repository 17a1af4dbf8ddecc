"""Optimizers, learning rate schedule, weight averaging, and frozen weights."""
