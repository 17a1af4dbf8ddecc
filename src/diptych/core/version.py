"""The version of this package, also available in a checkout that is not installed."""

VERSION = "0.1.0"
"""Equal to the version in `pyproject.toml`."""
