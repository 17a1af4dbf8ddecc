"""Record the files and folders that a source was read from, and the warnings of its reader."""

import os
import time
import warnings
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from diptych.core.errors import DiptychWarning
from diptych.core.file_states import NUM_FIELDS, FileStates, file_state
from diptych.data.storage.columns import TextColumn

_current: ContextVar["Inputs | None"] = ContextVar("inputs", default=None)


class Inputs:
    """The inputs of one source: paths, their states just before reading, and warnings."""

    def __init__(self) -> None:
        self.paths = TextColumn()
        self.warned: list[str] = []
        self._states = array("q")  # An array, because a folder of texts has one path per image.
        self._begun_ns = time.time_ns()

    def add(self, path: Path) -> None:
        """Add a file or folder."""
        absolute = os.path.abspath(path)  # noqa: PTH100  (links stay as they are)
        self.paths.append(absolute)
        self._states.extend(file_state(absolute))

    def states(self) -> FileStates:
        """Return the state of each path at the time it was added."""
        table = np.array(self._states, dtype=np.int64).reshape(-1, NUM_FIELDS)
        return FileStates(table, taken_ns=self._begun_ns)


@contextmanager
def recorded_inputs() -> Iterator[Inputs]:
    """Context manager that records the calls of `reads` and `warn` in the inputs that it yields."""
    inputs = Inputs()
    token = _current.set(inputs)
    try:
        yield inputs
    finally:
        _current.reset(token)


def reads(path: Path) -> None:
    """Record that the source depends on a file's content or a folder's entries. Call it before reading them."""
    inputs = _current.get()
    if inputs is not None:
        inputs.add(path)


def looked_up(path: Path) -> Path:
    """Return the path itself, and record it if it is a broken link, because its target may exist later.

    Call it before testing whether a path is a file or a folder.
    """
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114  (these raise nothing)
        reads(path)
    return path


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one. A broken link is recorded, as by `looked_up`."""
    try:
        if entry.is_dir():
            return True
        is_broken = entry.is_symlink() and not entry.is_file()
    except OSError:  # For example, a link to itself.
        is_broken = True
    if is_broken:
        reads(Path(entry.path))
    return False


def warn(text: str) -> None:
    """Issue a `DiptychWarning` about the data, and record it, so that it is repeated if the source comes from the cache."""
    inputs = _current.get()
    if inputs is not None:
        inputs.warned.append(text)
    warnings.warn(text, DiptychWarning, stacklevel=3)
