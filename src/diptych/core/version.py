"""The version of this package. It is also available in a checkout that is not installed."""

VERSION = "0.1.0"
"""The same as in `pyproject.toml`."""
