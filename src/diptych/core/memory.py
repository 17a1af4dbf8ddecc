"""What a long computation on a CPU asks of the C library's memory."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # As in malloc.h.


def keep_freed_memory() -> None:
    """Let the process keep what it frees, for its next allocation.

    glibc gives blocks above 32 MB back to the system at once. A training step frees and asks for the same blocks again and
    again, and the system hands them out page by page, each zeroed. Elsewhere than on Linux with glibc nothing is done.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give the system what the process keeps and does not use, where something else than before is to come."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
