"""Check that an argument is a list and not a single value; split lists into parts."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from diptych.core.errors import DiptychError

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be smaller. Equivalent to `itertools.batched` of Python 3.12.

    >>> list(batched("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def chunks(num: int, size: int) -> Iterator[slice]:
    """Return slices of at most `size` positions that together cover `range(num)`.

    >>> list(chunks(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one has been requested, so that a device is busy while the caller waits for a result.

    >>> list(one_behind("abc"))
    ['a', 'b', 'c']
    """
    waiting = deque[T]()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def check_list(items: object, what: str) -> None:
    """Raise an error if a single value is passed where several are expected. A string would be iterated by character.

    Args:
        items: the value of the argument.
        what: the name of the argument.

    Raises:
        DiptychError: the value is a string, bytes or a path, or is not iterable.

    >>> check_list(["a dog"], "texts")
    >>> check_list("a dog", "texts")
    Traceback (most recent call last):
    diptych.core.errors.DiptychError: texts is one str, not several: write ['a dog']
    """
    if isinstance(items, str | bytes | bytearray | Path) or not isinstance(items, Iterable):
        raise DiptychError(f"{what} is one {type(items).__name__}, not several: write [{items!r:.60}]")


def check_not_empty(items: Sequence[object], what: str) -> None:
    """Check that `items` is a list with at least one item; `what` is the singular noun for the message.

    Raises:
        DiptychError: `items` is empty or a single value.
    """
    check_list(items, f"{what}s")
    if len(items) == 0:
        raise DiptychError(f"no {what} given; at least one is needed")
