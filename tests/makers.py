"""Factories for tests of several packages: damaged files."""

from pathlib import Path


def flip_bit(path: Path, bit: int | None = None) -> None:
    """Flip one bit of a file, by default the lowest one of its middle byte."""
    content = bytearray(path.read_bytes())
    if bit is None:
        bit = 8 * (len(content) // 2)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
