"""The version of this package, also where it runs from a checkout that is not installed."""

VERSION = "0.1.0"
"""The same as in `pyproject.toml`."""
