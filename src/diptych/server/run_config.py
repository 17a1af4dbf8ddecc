"""Reads the settings of a training run for the page that compares runs, with limits on their size."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.address import without_secrets
from diptych.core.errors import ConfigError, RunError
from diptych.core.settings import read_yaml
from diptych.server.appended import is_same
from diptych.server.run_events import printable_text

CONFIG = "config.yaml"
_MAX_BYTES = 2**20
_MAX_SETTINGS = 5000
_MAX_DEPTH = 32
_MAX_PATH = 2000


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The contents of a `config.yaml`."""

    recipe: str | None
    data: str | None
    """Address of the data source, without secrets."""
    settings: dict[str, Any]
    """All settings by dotted path, as in the options of `diptych train`."""


class ConfigReader:
    """Reads a `config.yaml` and reads it again only if its device, inode, size or modification time has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._status: os.stat_result | None = None
        self._outcome: RunConfig | ConfigError | RunError

    def read(self) -> RunConfig:
        """The current settings.

        Raises:
            ConfigError: the file is not YAML, or exceeds the limits of `read_yaml`.
            RunError: the file contains no settings, more than 5,000, or a value that JSON cannot represent.
            OSError: the file cannot be read.
        """
        status = self._path.stat()
        if not is_same(self._status, status):
            self._status = None
            try:
                self._outcome = _read(self._path, status.st_size)
            except (ConfigError, RunError) as error:
                self._outcome = error
            self._status = status
        if not isinstance(self._outcome, RunConfig):
            raise self._outcome.with_traceback(None)  # Each raise adds to the traceback.
        return self._outcome


def _read(path: Path, size: int) -> RunConfig:
    if size > _MAX_BYTES:
        raise RunError(f"{CONFIG}: has {size} bytes; at most {_MAX_BYTES} are read")
    try:
        read = read_yaml(path)
    except RecursionError:
        raise RunError(f"{CONFIG}: is nested too deeply") from None
    if not isinstance(read, dict | None):
        raise RunError(f"{CONFIG}: holds no settings")
    settings = without_secrets(read or {})
    flat = dict(_flat(settings))
    data, recipe = settings.get("data"), settings.get("recipe")
    if not isinstance(data, dict | None):
        raise RunError(f"{CONFIG}: data is {str(data)[:60]!r}, and should be a group of settings")
    return RunConfig(
        recipe=None if recipe is None else printable_text(str(recipe)),
        data=printable_text(str((data or {}).get("source") or "")) or None,
        settings=flat,
    )


def _flat(settings: Any) -> list[tuple[str, Any]]:
    """All settings as pairs of dotted path and value.

    Raises:
        RunError: there are too many settings, or they are nested too deeply.
    """
    pairs: list[tuple[str, Any]] = []
    budget = _Budget()

    def visit(value: Any, path: str, depth: int) -> None:
        budget.spend(depth, path)
        if isinstance(value, dict) and (value or depth):
            for key, inner in value.items():
                visit(inner, f"{path}.{printable_text(str(key))}" if path else printable_text(str(key)), depth + 1)
        elif isinstance(value, list):
            pairs.append((path, [_plain(one, budget, depth + 1) for one in value]))
        elif depth:
            pairs.append((path, _plain(value, budget, depth)))

    visit(settings, "", 0)
    return pairs


class _Budget:
    """Counts the values of a file, including repeated references to the same value."""

    _num_left = _MAX_SETTINGS

    def spend(self, depth: int, path: str = "") -> None:
        """Count one value.

        Raises:
            RunError: there are too many values, or this one is nested too deeply.
        """
        self._num_left -= 1
        if self._num_left < 0:
            raise RunError(f"{CONFIG}: holds more than {_MAX_SETTINGS} settings, or many references to the same")
        if depth > _MAX_DEPTH or len(path) > _MAX_PATH:
            raise RunError(f"{CONFIG}: is nested too deeply")


def _plain(value: Any, budget: _Budget, depth: int) -> Any:
    """A value that JSON can represent.

    Raises:
        RunError: the value is too large or nested too deeply.
    """
    budget.spend(depth)
    match value:
        case None | bool():
            return value
        case int():
            if abs(value) > 2**63:
                raise RunError(f"{CONFIG}: holds a number of {value.bit_length()} bits")
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case list():
            return [_plain(one, budget, depth + 1) for one in value]
        case dict():
            return {printable_text(str(key)): _plain(inner, budget, depth + 1) for key, inner in value.items()}
        case _:
            return printable_text(str(value))
