"""The check at every entry that takes several things."""

from collections.abc import Iterable
from pathlib import Path

from diptych.core.errors import DiptychError


def check_list(items: object, what: str) -> None:
    """Refuse one thing where several are expected: iterating over a string would give its letters.

    Args:
        items: what the caller was given.
        what: the name of the argument.

    Raises:
        DiptychError: it is a string, bytes or a path, or nothing that can be iterated.

    >>> check_list(["a dog"], "texts")
    >>> check_list("a dog", "texts")
    Traceback (most recent call last):
    diptych.core.errors.DiptychError: texts is one str, not several: write ['a dog']
    """
    if isinstance(items, str | bytes | bytearray | Path) or not isinstance(items, Iterable):
        raise DiptychError(f"{what} is one {type(items).__name__}, not several: write [{items!r:.60}]")
