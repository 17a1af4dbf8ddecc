"""Fit the batches that worker processes prepare into shared memory, which containers often limit to 64 MB."""

import contextlib
import os
import sys
import warnings
from typing import NamedTuple

from diptych.core.errors import DataError, DiptychWarning
from diptych.core.launched import local_size

_FOLDER = "/dev/shm"
_USABLE = 0.5
"""Share of the free space that batches may fill. The rest is for the batch in use, and for other programs."""
_LEAST = 2
"""Number of batches in flight below which the training process would wait for each batch."""
_MANY_WORKERS = 8


class Workers(NamedTuple):
    """Worker processes, and how many batches each prepares in advance."""

    num: int
    ahead: int


def free_bytes() -> int | None:
    """Free shared memory in bytes; None if it is unknown, as on systems other than Linux."""
    if sys.platform != "linux":
        return None
    try:
        status = os.statvfs(_FOLDER)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def raise_file_limit() -> None:
    """Raise the limit of open files to the maximum that the system allows. Workers pass each tensor of a batch as a file."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  (not on Windows)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # On macOS, the stated maximum may be above the allowed one.
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def plan_workers(num: int, *, batch_bytes: int) -> Workers:
    """As many workers and batches in advance as fit into shared memory; also raises the limit of open files.

    A worker prepares four batches in advance, or two if there are more than eight workers; fewer if they do not fit into half
    of the free space, which the ranks of a machine share. If not even one batch per worker fits, there are fewer workers, with
    a `DiptychWarning`.

    Args:
        num: the desired number of workers.
        batch_bytes: size of a batch in bytes.

    Raises:
        DataError: not even two batches fit.
    """
    ahead = 4 if num <= _MANY_WORKERS else 2
    free = free_bytes()
    raise_file_limit()
    if num == 0 or free is None:
        return Workers(num, ahead)
    fitting = int(_USABLE * free / (local_size() * batch_bytes))
    if fitting < _LEAST:
        raise too_small(batch_bytes)
    if fitting >= num:
        return Workers(num, min(ahead, fitting // num))
    text = (
        f"{_FOLDER} has {_megabytes(free)} free, so only {fitting} of {num} workers read data; each needs a batch of "
        f"{_megabytes(batch_bytes)} there (in Docker: --shm-size or --ipc=host)"
    )
    warnings.warn(text, DiptychWarning, stacklevel=2)
    return Workers(fitting, 1)


def too_small(batch_bytes: int) -> DataError:
    """The error that the shared memory is too small for batches of this size.

    Args:
        batch_bytes: size of a batch in bytes.
    """
    free = free_bytes() or 0
    needed = int(_LEAST * batch_bytes * local_size() / _USABLE)
    return DataError(
        f"{_FOLDER} has {_megabytes(free)} free; workers with batches of {_megabytes(batch_bytes)} need {_megabytes(needed)}. "
        f"Give the container more (Docker: --shm-size={_megabytes(needed, 'm')} or --ipc=host), use smaller batches, or load "
        "the data in the training process (--data.workers 0)"
    )


def is_exhausted(batch_bytes: int) -> bool:
    """Whether another batch does not fit. A worker that ended was then probably killed for lack of shared memory (SIGBUS)."""
    free = free_bytes()
    return free is not None and free < batch_bytes


def _megabytes(num: int, unit: str = " MB") -> str:
    return f"{-(-num // 2**20):,}{unit}" if unit == " MB" else f"{-(-num // 2**20)}{unit}"
