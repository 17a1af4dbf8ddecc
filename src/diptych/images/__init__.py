"""Decode, transform and draw images."""
