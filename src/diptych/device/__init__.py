"""Devices, precisions, ranks, launched and forked processes, and timers. Requires torch."""
