"""Size, times and inode of many files as one array, which shows that a file was changed without opening it."""

import os
import time
from collections.abc import Sequence
from hashlib import sha256
from itertools import chain
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from diptych.core import cache

_CHUNK = 4096
"""Number of files per chunk: each `stat_result` object takes 400 bytes."""
_FIELDS = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev")
NUM_FIELDS = len(_FIELDS)
_of_state = attrgetter(*_FIELDS)
_MISSING = (-1,) * NUM_FIELDS
_MAX_INT64 = (1 << 63) - 1


class FileStates:
    """One row per file: size in bytes, mtime and ctime in ns, inode, device; all -1 if the file is missing.

    Args:
        table: the rows, shape (number of files, `NUM_FIELDS`).
        taken_ns: a time in ns before the first file was read.
    """

    def __init__(self, table: NDArray[np.int64], *, taken_ns: int) -> None:
        self.table, self.taken_ns = table, taken_ns

    def __len__(self) -> int:
        return len(self.table)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Size of each file in bytes; -1 if it is missing."""
        return self.table[:, 0]

    def take(self, rows: NDArray[np.int64]) -> "FileStates":
        """Return the states of the files at the given rows."""
        return FileStates(self.table[rows], taken_ns=self.taken_ns)

    def file_ids(self) -> NDArray[np.int64]:
        """Return an id for each row. Rows of the same file (hard links) have the same id; each missing file has its own."""
        order = np.lexsort((self.table[:, 3], self.table[:, 4]))
        ordered = self.table[order][:, 3:]
        is_new = np.ones(len(order), dtype=bool)
        is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1) | (self.table[order[1:], 0] < 0)
        ids = np.empty(len(order), dtype=np.int64)
        ids[order] = np.cumsum(is_new)
        return ids

    def digest(self) -> str:
        """Return a hash of all rows, 64 hexadecimal digits; it differs after a file was changed."""
        return sha256(np.ascontiguousarray(self.table, dtype="<i8").data).hexdigest()

    def is_settled(self) -> bool:
        """Whether every file was last changed more than two seconds before `taken_ns`, so that a new change is detectable.

        A file may change while it is being read; therefore `taken_ns` counts and not the current time. An mtime in the future
        was set by a program and is ignored: setting it also updated the ctime, which programs cannot set.
        """
        modified, changed = self.table[:, 1], self.table[:, 2]
        last = max(modified[modified <= self.taken_ns].max(initial=0), changed.max(initial=0))
        return self.taken_ns - int(last) > 1e9 * cache.SETTLED_S


def file_states(paths: Sequence[str]) -> FileStates:
    """Return the states of files; symbolic links are followed.

    >>> file_states(["/no/such/file"]).sizes.tolist()
    [-1]
    """
    taken_ns = time.time_ns()
    chunks = [_states(paths[start : start + _CHUNK]) for start in range(0, len(paths), _CHUNK)]
    table = np.concatenate(chunks) if chunks else np.empty((0, NUM_FIELDS), dtype=np.int64)
    return FileStates(table, taken_ns=taken_ns)


def _states(paths: Sequence[str]) -> NDArray[np.int64]:
    count = len(paths) * NUM_FIELDS
    try:
        found = np.fromiter(chain.from_iterable(map(_of_state, map(os.stat, paths))), dtype=np.int64, count=count)
    except (OSError, ValueError, OverflowError):  # A file is missing, or an inode has 64 bits.
        found = np.fromiter(chain.from_iterable(map(file_state, paths)), dtype=np.int64, count=count)
    return found.reshape(len(paths), NUM_FIELDS)


def file_state(path: str) -> tuple[int, ...]:
    """Return the row of one file (see `FileStates`); all -1 if it is missing."""
    try:
        return tuple(value & _MAX_INT64 if value > _MAX_INT64 else value for value in _of_state(os.stat(path)))  # noqa: PTH116  (as above)
    except (OSError, ValueError):
        return _MISSING
