"""Text to ids: one contract, and the tokenizers that keep it."""
