"""Settings of glibc's memory allocator for long computations on a CPU."""

import ctypes
import mmap
import platform
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # From malloc.h.
_MAX_GROWTH = 1.1
"""Memory is returned when it exceeds the first measurement by this factor."""
_MIN_ROUNDS = 8
"""Minimum number of rounds between two returns. Returning memory after every round would make training 5 % slower."""


def keep_freed_memory() -> None:
    """Configure the allocator to reuse freed memory instead of returning it to the system. Does nothing without glibc.

    By default, glibc returns freed blocks of more than 32 MB immediately. A training step allocates the same blocks again and
    again, and the system would provide them page by page, each filled with zeros. All threads share one heap, because memory
    that one thread frees is allocated by another.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Return unused memory to the system, for example before a different computation. Does nothing without glibc."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


class Growth:
    """Limits the growth of memory through fragmentation in a loop whose rounds allocate about the same sizes.

    If sizes vary slightly between rounds, freed memory is split into pieces that the next round cannot use. `look` returns
    unused memory to the system when the resident memory exceeds that of the first round by 10 %, at most every eight rounds.
    The next round is slower because of page faults, and becomes the new first round.
    """

    def __init__(self) -> None:
        self._baseline: int | None = None
        self._rounds = 0

    def look(self) -> None:
        """Measure the memory and return some if it has grown. Call this at the end of each round."""
        if not _has_glibc():
            return
        resident = held_bytes()
        self._rounds += 1
        if self._baseline is None:
            self._baseline = resident
        elif resident > _MAX_GROWTH * self._baseline and self._rounds >= _MIN_ROUNDS:
            return_freed_memory()
            self._baseline, self._rounds = None, 0


def held_bytes() -> int:
    """Resident memory of this process in bytes. Linux only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE


def _has_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
