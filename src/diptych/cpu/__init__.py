"""Optimizations for CPUs. They change speed and memory use, not results."""
