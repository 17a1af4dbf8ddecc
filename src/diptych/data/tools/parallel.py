"""Work on many samples in threads: decoding lets other threads run."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_READ_AHEAD = 64
"""Samples that are under way or waiting to be taken."""

Result = TypeVar("Result")


def in_order(work: Callable[[int], Result], indices: Sequence[int], *, workers: int) -> Iterator[Result]:
    """What the work gives for each index, in their order, never more than a few of them in memory.

    >>> list(in_order(lambda index: index * index, range(4), workers=2))
    [0, 1, 4, 9]
    """
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(indices), _READ_AHEAD):
            yield from pool.map(work, indices[start : start + _READ_AHEAD])
