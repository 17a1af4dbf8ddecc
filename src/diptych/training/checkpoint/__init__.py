"""Checkpoints of a run: when they are due, what they hold, how they are written and whether a run may go on from them."""
