"""Tokenizers: convert texts to token ids and back."""
