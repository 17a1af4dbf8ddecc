"""What a source was read from: the files and folders that a reader looked at, and the warnings that it gave."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from diptych.core.errors import DiptychWarning
from diptych.core.file_states import FileStates, file_states

_current: ContextVar["Inputs | None"] = ContextVar("inputs", default=None)


class Inputs:
    """The inputs of one source: paths, their states just before they were read, and warnings."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.warned: list[str] = []
        self._states: list[FileStates] = []

    def add(self, path: Path) -> None:
        """Add a file or folder."""
        self.paths.append(os.path.abspath(path))  # noqa: PTH100  (links stay as they are)
        self._states.append(file_states(self.paths[-1:]))

    def states(self) -> FileStates:
        """The state of each path when it was added."""
        return FileStates(np.concatenate([file_states([]).table, *(states.table for states in self._states)]))


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


def warn(text: str) -> None:
    """Warn of something in the data, also when the source is taken from the cache."""
    inputs = _current.get()
    if inputs is not None:
        inputs.warned.append(text)
    warnings.warn(text, DiptychWarning, stacklevel=3)
