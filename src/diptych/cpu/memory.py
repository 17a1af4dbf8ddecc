"""What a long computation on a CPU asks of the C library's memory."""

import ctypes
import mmap
import platform
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # As in malloc.h.
_MAX_GROWTH = 1.1
_MIN_ROUNDS = 8
"""From one time that memory is given back to the next: after each round it would cost 5 % of a training's time."""


def keep_freed_memory() -> None:
    """Let the process keep what it frees, for its next allocation.

    glibc gives blocks above 32 MB back to the system at once. A training step frees and asks for the same blocks again and
    again, and the system hands them out page by page, each zeroed. All threads share one heap, as what one frees another asks
    for. Elsewhere than on Linux with glibc nothing is done.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give the system what the process keeps and does not use, where something else than before is to come."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


class Growth:
    """Looks at what a process holds, round after round of a loop that allocates alike, and gives back what grows.

    Where sizes vary a little from round to round, what is freed falls into pieces that the next round cannot use. The first
    round after memory was given back is the measure for those that follow; its page faults are the price, paid in one round of
    eight at most.
    """

    def __init__(self) -> None:
        self._measure: int | None = None
        self._rounds = 0

    def look(self) -> None:
        """To be called at the end of a round."""
        if not _has_glibc():
            return
        held = held_bytes()
        self._rounds += 1
        if self._measure is None:
            self._measure = held
        elif held > _MAX_GROWTH * self._measure and self._rounds >= _MIN_ROUNDS:
            return_freed_memory()
            self._measure, self._rounds = None, 0


def held_bytes() -> int:
    """Of the system's memory, by this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE


def _has_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
