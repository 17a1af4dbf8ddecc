"""Tools for whole datasets: audit, pack, and export as tars."""
