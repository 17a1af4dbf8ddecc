"""What a source was read from: the files and folders that a reader looked at, and the warnings that it gave."""

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
    """The inputs of one source: paths, their states just before they were read, and warnings."""

    def __init__(self) -> None:
        self.paths = TextColumn()
        self.warned: list[str] = []
        self._states = array("q")  # Of all paths: a folder of texts has one for each picture.
        self._begun_ns = time.time_ns()

    def add(self, path: Path) -> None:
        """Add a file or folder."""
        absolute = os.path.abspath(path)  # noqa: PTH100  (links stay as they are)
        self.paths.append(absolute)
        self._states.extend(file_state(absolute))

    def states(self) -> FileStates:
        """The state of each path when it was added."""
        table = np.array(self._states, dtype=np.int64).reshape(-1, NUM_FIELDS)
        return FileStates(table, taken_ns=self._begun_ns)


@contextmanager
def recorded_inputs() -> Iterator[Inputs]:
    """Within the block, `reads` and `warn` also add to the inputs that are yielded."""
    inputs = Inputs()
    token = _current.set(inputs)
    try:
        yield inputs
    finally:
        _current.reset(token)


def reads(path: Path) -> None:
    """Say that a file's content or the names in a folder are about to be read, and that the source depends on them."""
    inputs = _current.get()
    if inputs is not None:
        inputs.add(path)


def looked_up(path: Path) -> Path:
    """The path itself. A source depends on a link that leads nowhere: its target may exist at the next start.

    Use it before asking whether a path is a file or a folder.
    """
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114  (these raise nothing)
        reads(path)
    return path


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder or a link to one. A source depends on links that lead nowhere, as above."""
    try:
        if entry.is_dir():
            return True
        leads_nowhere = entry.is_symlink() and not entry.is_file()
    except OSError:  # Of a link to itself, for one.
        leads_nowhere = True
    if leads_nowhere:
        reads(Path(entry.path))
    return False


def warn(text: str) -> None:
    """Warn of something in the data, also when the source is taken from the cache."""
    inputs = _current.get()
    if inputs is not None:
        inputs.warned.append(text)
    warnings.warn(text, DiptychWarning, stacklevel=3)
