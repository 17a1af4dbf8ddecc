"""Errors, samples, settings, keyed randomness and files. Nothing here imports torch."""
