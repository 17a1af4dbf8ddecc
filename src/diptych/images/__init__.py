"""Bytes to pixels, and pictures for people to look at."""
