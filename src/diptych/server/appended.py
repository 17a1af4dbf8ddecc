"""Incremental reader of a text file that grows: after the first read, only appended lines are read."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Generic, Protocol, TypeVar, runtime_checkable

from diptych.core.errors import RunError
from diptych.core.files import open_regular

MAX_FILE_BYTES = 256 * 2**20
MAX_LINE_BYTES = 2**20
_BLOCK_BYTES = 2**20
_TAIL_BYTES = 4096
"""Number of bytes before the offset that are compared. If they have changed, the file is read again from its start."""


@runtime_checkable
class LineReader(Protocol):
    """Receives the lines of a file in their order."""

    def add(self, block: bytes, *, first_line: int) -> None:
        """Process complete lines.

        Args:
            block: one or more lines.
            first_line: number of the first of them, counted from 1.

        Raises:
            RunError: a line has invalid content.
        """


R = TypeVar("R", bound=LineReader)


class IncrementalReader(Generic[R]):
    """Passes each line of a growing file to a reader once.

    The file is read again from its start, with a new reader, if it has been replaced (another device or inode), has become
    shorter, has changed without growing, or if the bytes before the offset have changed. This happens, for example, when a
    resumed run rewrites its log without the events after its checkpoint. A change far before the offset is not detected if
    new lines are appended at the same time.

    An incomplete last line is left for the next call. A last line without a line end is read if it is a complete JSON object.

    Args:
        path: the file.
        make: returns a new reader.
    """

    def __init__(self, path: Path, make: Callable[[], R]) -> None:
        self._path, self._make = path, make
        self._restart()

    def _restart(self) -> None:
        self._reader = self._make()
        self._offset, self._num_lines, self._tail = 0, 0, b""
        self._error: RunError | None = None
        self._status: os.stat_result | None = None

    def read(self) -> R:
        """The reader, after it has received all current lines of the file. An unchanged file is not opened.

        Raises:
            RunError: the file or a line is too large, or the reader raised the error for a line.
            OSError: the file cannot be read.
        """
        if not is_same(self._status, self._path.stat()):
            self._update()
        if self._error is not None:
            raise self._error.with_traceback(None)  # Each raise adds to the traceback.
        return self._reader

    def _update(self) -> None:
        with open_regular(self._path) as file:
            status = os.fstat(file.fileno())
            if not self._continues(file, status):
                self._restart()
            if status.st_size > MAX_FILE_BYTES:
                raise RunError(f"{self._path.name}: has {status.st_size} bytes; at most {MAX_FILE_BYTES} are read")
            try:
                if self._error is None:
                    self._read_lines(file, status.st_size)
            except RunError as error:  # It stays until the file is replaced: more lines cannot fix it.
                self._error = error.with_traceback(None)
            except BaseException:
                self._restart()
                raise
        self._status = status

    def _continues(self, file: BinaryIO, now: os.stat_result) -> bool:
        before = self._status
        if (
            before is None
            or (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino)
            or now.st_size <= before.st_size
        ):
            return False  # Replaced, truncated, or changed in place.
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _read_lines(self, file: BinaryIO, size: int) -> None:
        file.seek(self._offset)
        num_left, pending = size - self._offset, b""
        while num_left > 0 and (chunk := file.read(min(num_left, _BLOCK_BYTES))):
            num_left -= len(chunk)
            first_end, last_end = chunk.find(b"\n"), chunk.rfind(b"\n") + 1
            if len(pending) + (len(chunk) if first_end < 0 else first_end) > MAX_LINE_BYTES:
                number = self._num_lines + 1
                raise RunError(f"{self._path.name}: line {number} is longer than {MAX_LINE_BYTES} bytes")
            if last_end:
                self._add(pending + chunk[:last_end])
                pending = chunk[last_end:]
            else:
                pending += chunk
        if _is_object(pending):
            self._add(pending)

    def _add(self, block: bytes) -> None:
        self._reader.add(block, first_line=self._num_lines + 1)
        self._offset += len(block)
        self._num_lines += block.count(b"\n")
        self._tail = (self._tail + block[-_TAIL_BYTES:])[-_TAIL_BYTES:]


def is_same(before: os.stat_result | None, now: os.stat_result) -> bool:
    """Whether device, inode, size and modification time of a file are unchanged."""
    return before is not None and all(
        getattr(before, name) == getattr(now, name) for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    )


def _is_object(line: bytes) -> bool:
    try:
        return line.rstrip().endswith(b"}") and isinstance(json.loads(line.decode("utf-8", "replace")), dict)
    except ValueError:
        return False
    except RecursionError:  # The reader reports it.
        return True
