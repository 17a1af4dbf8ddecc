"""Process many samples in threads; decoding releases the GIL."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_READ_AHEAD = 64
"""Maximum number of samples that are being processed or wait to be consumed."""

Result = TypeVar("Result")


def in_order(work: Callable[[int], Result], indices: Sequence[int], *, workers: int) -> Iterator[Result]:
    """Yield the result of `work` for each index, in order; at most 64 results are in memory at a time.

    >>> list(in_order(lambda index: index * index, range(4), workers=2))
    [0, 1, 4, 9]
    """
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(indices), _READ_AHEAD):
            yield from pool.map(work, indices[start : start + _READ_AHEAD])
