"""Figures that say what they mean: each carries the protocol it was measured by."""
