"""Reads run folders for the page that compares runs. After the first read, only changes are read."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diptych.core.errors import ConfigError, RunError
from diptych.server.appended import IncrementalReader
from diptych.server.run_config import CONFIG, ConfigReader
from diptych.server.run_events import EVENTS, LastValues, RunCurves

PICTURES = ("curves.png", "samples.png", "search.png")
_MAX_POINTS = 1_000_000
"""Maximum number of cached curve points, about 90 MB."""


class RunReader:
    """Reads the runs of one folder and caches their curves. It is safe to call from several threads.

    Args:
        max_points: maximum number of cached curve points in all runs together. Beyond it, the curves that were requested the
            longest time ago are dropped.
    """

    def __init__(self, *, max_points: int = _MAX_POINTS) -> None:
        self._max_points = max_points
        self._lock = threading.Lock()
        self._runs: dict[Path, _Run] = {}
        self._with_curves: dict[Path, _Run] = {}
        """Runs with cached curves, the most recently requested last."""

    def summaries(self, folders: dict[str, Path]) -> list[dict[str, Any]]:
        """A summary of each run. Caches of other folders are dropped.

        `unreadable` is None, or the reason why a run cannot be read; its other fields are then empty.

        Args:
            folders: the folders of all runs by name.
        """
        listed = set(folders.values())
        with self._lock:
            for cache in (self._runs, self._with_curves):
                for path in cache.keys() - listed:
                    del cache[path]
            runs = [(name, self._run(path)) for name, path in folders.items()]
        return [run.read(name, has_details=False) for name, run in runs]

    def details(self, name: str, path: Path) -> dict[str, Any]:
        """The summary of a run together with its curves, messages and settings."""
        with self._lock:
            run = self._run(path)
        payload = run.read(name, has_details=True)
        with self._lock:
            self._with_curves.pop(path, None)
            self._with_curves[path] = run
            dropped = self._pop_oldest()
        for old in dropped:
            old.drop_curves()
        return payload

    def _run(self, path: Path) -> "_Run":
        return self._runs.setdefault(path, _Run(path))

    def _pop_oldest(self) -> "Iterable[_Run]":
        """Remove and return the oldest runs of the cache until the points fit. The most recently requested run stays."""
        dropped, num_points = [], sum(run.num_points for run in self._with_curves.values())
        while num_points > self._max_points and len(self._with_curves) > 1:
            run = self._with_curves.pop(next(iter(self._with_curves)))
            dropped.append(run)
            num_points -= run.num_points
        return dropped


class _Run:
    """Reads one run folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._config = ConfigReader(path / CONFIG)
        self._last = IncrementalReader(path / EVENTS, LastValues)
        self._curves: IncrementalReader[RunCurves] | None = None
        self.num_points = 0

    def read(self, name: str, *, has_details: bool) -> dict[str, Any]:
        """The values that the list of runs shows; with details, also curves, messages and settings."""
        empty = {"name": name, "step": 0, "is_done": False, "last": {}, "pictures": [], "unreadable": None}
        details: dict[str, Any] = {"curves": {}, "messages": [], "settings": {}} if has_details else {}
        try:
            with self._lock:
                return {**empty, **details, **self._read(has_details=has_details)}
        except (ConfigError, RunError) as error:
            reason = str(error).removeprefix(f"{self._path}/")
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except (ValueError, RecursionError, MemoryError, OverflowError, TypeError) as error:
            reason = f"{type(error).__name__}"
        return {**empty, **details, "unreadable": printable(reason)}

    def drop_curves(self) -> None:
        """Free the memory of the curves. The next request for them reads the events again."""
        with self._lock:
            self._curves, self.num_points = None, 0

    def _read(self, *, has_details: bool) -> dict[str, Any]:
        config, last = self._config.read(), self._last.read().values
        summary = {
            "recipe": config.recipe,
            "data": config.data,
            "step": last.get("step", 0),
            "elapsed_s": last.get("elapsed_s"),
            "loss": last.get("loss"),
            "is_done": (self._path / "bundle").is_dir(),
            "last": {key: value for key, value in last.items() if key.startswith("val_")},
            "pictures": [file for file in PICTURES if (self._path / file).is_file()],
        }
        if has_details and self._curves is None:
            self._curves = IncrementalReader(self._path / EVENTS, RunCurves)
        if self._curves is None:
            return summary
        curves = self._curves.read()  # Also for a summary, so that the list of runs reports events that cannot be read.
        self.num_points = curves.num_points
        if not has_details:
            return summary
        return {**summary, "curves": curves.thinned(), "messages": list(curves.messages), "settings": config.settings}


def printable(text: str) -> str:
    r"""A file name as text that JSON can contain. Bytes that are not UTF-8 become escapes.

    >>> printable("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
