"""Reads run folders for the page of runs: each file once, then only what changed. A run that cannot be read says why."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diptych.core.errors import ConfigError, RunError
from diptych.server.appended import Appended
from diptych.server.run_config import CONFIG, ConfigReader
from diptych.server.run_events import EVENTS, LastValues, RunCurves

PICTURES = ("curves.png", "samples.png", "search.png")
_MAX_POINTS = 1_000_000
"""Points of curves that are kept, about 90 MB. Beyond it the curves that were asked for the longest time ago are dropped."""


class RunReader:
    """What is known of the runs of one folder. Several threads may ask at once; a run is read by one at a time.

    Args:
        max_points: points of curves that are kept for later requests, in all runs together.
    """

    def __init__(self, *, max_points: int = _MAX_POINTS) -> None:
        self._max_points = max_points
        self._lock = threading.Lock()
        self._runs: dict[Path, _Run] = {}
        self._by_age: dict[Path, _Run] = {}
        """Those whose curves are kept, the one that was asked for last at the end."""

    def summaries(self, found: dict[str, Path]) -> list[dict[str, Any]]:
        """A summary of each run. What was known of other folders is forgotten.

        A run that cannot be read has the reason as `unreadable`, which is None for others, and nothing else.

        Args:
            found: the folders of all runs by name.
        """
        listed = set(found.values())
        with self._lock:
            for kept in (self._runs, self._by_age):
                for path in kept.keys() - listed:
                    del kept[path]
            runs = [(name, self._run(path)) for name, path in found.items()]
        return [run.summary(name) for name, run in runs]

    def whole(self, name: str, path: Path) -> dict[str, Any]:
        """The summary of a run with its curves, messages and settings."""
        with self._lock:
            run = self._run(path)
        answer = run.whole(name)
        with self._lock:
            self._by_age.pop(path, None)
            self._by_age[path] = run
            dropped = self._oldest()
        for old in dropped:
            old.drop_curves()
        return answer

    def _run(self, path: Path) -> "_Run":
        return self._runs.setdefault(path, _Run(path))

    def _oldest(self) -> "Iterable[_Run]":
        """Runs whose curves are too many, taken from those that are kept; the last asked for always stays."""
        dropped, num_points = [], sum(run.num_points for run in self._by_age.values())
        while num_points > self._max_points and len(self._by_age) > 1:
            run = self._by_age.pop(next(iter(self._by_age)))
            dropped.append(run)
            num_points -= run.num_points
        return dropped


class _Run:
    """One run folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._config = ConfigReader(path / CONFIG)
        self._last = Appended(path / EVENTS, LastValues)
        self._curves: Appended[RunCurves] | None = None
        self.num_points = 0

    def summary(self, name: str) -> dict[str, Any]:
        """What the list of runs shows."""
        with self._lock:
            return self._answer(name, is_whole=False)

    def whole(self, name: str) -> dict[str, Any]:
        """The same, with curves, messages and settings."""
        with self._lock:
            return self._answer(name, is_whole=True)

    def drop_curves(self) -> None:
        """Free them; the next request for them reads the events again."""
        with self._lock:
            self._curves, self.num_points = None, 0

    def _answer(self, name: str, *, is_whole: bool) -> dict[str, Any]:
        empty = {"name": name, "step": 0, "is_done": False, "last": {}, "pictures": [], "unreadable": None}
        whole: dict[str, Any] = {"curves": {}, "messages": [], "settings": {}} if is_whole else {}
        try:
            return {**empty, **whole, **self._read(is_whole=is_whole)}
        except (ConfigError, RunError) as error:
            reason = str(error).removeprefix(f"{self._path}/")
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except (ValueError, RecursionError, MemoryError, OverflowError, TypeError) as error:
            reason = f"{type(error).__name__}"
        return {**empty, **whole, "unreadable": printable(reason)}

    def _read(self, *, is_whole: bool) -> dict[str, Any]:
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
        if is_whole and self._curves is None:
            self._curves = Appended(self._path / EVENTS, RunCurves)
        if self._curves is None:
            return summary
        curves = self._curves.read()  # In the list, too: what it cannot read, the list names.
        self.num_points = curves.num_points
        if not is_whole:
            return summary
        return {**summary, "curves": curves.thinned(), "messages": list(curves.messages), "settings": config.settings}


def printable(text: str) -> str:
    r"""A text that JSON can carry: bytes of a file name that are no UTF-8 are written as escapes.

    >>> printable("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
