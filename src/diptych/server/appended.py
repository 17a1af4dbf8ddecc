"""Reads a file of lines that grows: at first all of it, later only what was appended."""

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
"""So many bytes before the offset must be as they were, or the file is read again from its start."""


@runtime_checkable
class LineReader(Protocol):
    """Takes the lines of a file in their order."""

    def add(self, block: bytes, *, first_line: int) -> None:
        """Take whole lines, of which the first has the number `first_line`.

        Raises:
            RunError: the lines hold what cannot be shown.
        """


R = TypeVar("R", bound=LineReader)


class Appended(Generic[R]):
    """Gives a reader the lines of one file, each once.

    The file is read again from its start, by a new reader, if it is another file (device and inode), shorter than what was
    read, changed at the same size, or if the bytes before the offset are no longer the same. A resumed run writes its log anew
    without the events after its checkpoint, which is one of these cases. A change far before the offset that comes together
    with new lines is not noticed.

    A last line that is half written is left for the next call. One without a line end that is a whole JSON object is taken:
    no beginning of an object is an object.

    Args:
        path: the file.
        make: makes a reader that has read nothing.
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
        """The reader, after all lines that the file has now. An unchanged file is not opened.

        Raises:
            RunError: the file or a line is too large, or the reader refused a line.
            OSError: the file cannot be read.
        """
        if not _is_same(self._status, self._path.stat()):
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
                    self._take_lines(file, status.st_size)
            except RunError as error:  # More lines will not mend it; another file may.
                self._error = error.with_traceback(None)
            except BaseException:
                self._restart()
                raise
        self._status = status

    def _continues(self, file: BinaryIO, now: os.stat_result) -> bool:
        before = self._status
        if before is None or (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino):
            return False
        if now.st_size <= before.st_size:  # Cut, or changed in place.
            return False
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _take_lines(self, file: BinaryIO, size: int) -> None:
        file.seek(self._offset)
        left, pending = size - self._offset, b""
        while left > 0 and (chunk := file.read(min(left, _BLOCK_BYTES))):
            left -= len(chunk)
            first_end, last_end = chunk.find(b"\n"), chunk.rfind(b"\n") + 1
            if len(pending) + (len(chunk) if first_end < 0 else first_end) > MAX_LINE_BYTES:
                number = self._num_lines + 1
                raise RunError(f"{self._path.name}: line {number} is longer than {MAX_LINE_BYTES} bytes")
            if last_end:
                self._take(pending + chunk[:last_end])
                pending = chunk[last_end:]
            else:
                pending += chunk
        if _is_object(pending):
            self._take(pending)

    def _take(self, block: bytes) -> None:
        self._reader.add(block, first_line=self._num_lines + 1)
        self._offset += len(block)
        self._num_lines += block.count(b"\n")
        self._tail = (self._tail + block[-_TAIL_BYTES:])[-_TAIL_BYTES:]


def _is_same(before: os.stat_result | None, now: os.stat_result) -> bool:
    return before is not None and all(
        getattr(before, name) == getattr(now, name) for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    )


def _is_object(line: bytes) -> bool:
    try:
        return line.rstrip().endswith(b"}") and isinstance(json.loads(line.decode("utf-8", "replace")), dict)
    except ValueError:
        return False
    except RecursionError:  # The reader says so.
        return True
