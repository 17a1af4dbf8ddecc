"""Reads one run folder for the page of runs. What is read is bounded, and a run that cannot be read says why."""

import json
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych.core.address import redacted, without_secrets
from diptych.core.errors import ConfigError, RunError
from diptych.core.settings import read_yaml

CONFIG, EVENTS = "config.yaml", "events.jsonl"
PICTURES = ("curves.png", "samples.png", "search.png")
_MAX_CONFIG_BYTES = 2**20
_MAX_EVENTS_BYTES = 256 * 2**20
_MAX_LINE_BYTES = 2**20
_MAX_SETTINGS = 5000
_MAX_DEPTH = 32
_MAX_TEXT = 2000
_MAX_POINTS = 2000
_MAX_CURVES = 500
_MAX_MESSAGES = 200
_ABOUT = frozenset({"step", "epoch", "progress", "elapsed_s", "seconds_left", "skipped"})
"""Of a logged step: where it stands, no curve."""


def read_run(name: str, path: Path, *, is_whole: bool) -> dict[str, Any]:
    """Summary of a run; with its curves, messages and settings, if all of it is read.

    A run that cannot be read has the reason as `unreadable`, which is None for others, and nothing else.
    """
    empty = {"name": name, "step": 0, "is_done": False, "last": {}, "pictures": [], "unreadable": None}
    whole: dict[str, Any] = {"curves": {}, "messages": [], "settings": {}} if is_whole else {}
    try:
        return {**empty, **whole, **_read(path, is_whole=is_whole)}
    except (ConfigError, RunError) as error:
        reason = str(error).removeprefix(f"{path}/")
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except (ValueError, RecursionError, MemoryError, OverflowError, TypeError) as error:
        reason = f"{type(error).__name__}"
    return {**empty, **whole, "unreadable": printable(reason)}


def printable(text: str) -> str:
    r"""A text that JSON can carry: bytes of a file name that are no UTF-8 are written as escapes.

    >>> printable("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _read(path: Path, *, is_whole: bool) -> dict[str, Any]:
    settings = _settings(path / CONFIG)
    flat = dict(_flat(settings))
    last: dict[str, Any] = {}
    curves, messages = _Curves(), deque[str](maxlen=_MAX_MESSAGES)
    for event in _events(path / EVENTS):
        last |= {key: value for key, value in event.items() if _is_figure(value)}
        if "message" in event:
            messages.append(_text(redacted(str(event["message"]))))
        elif is_whole:
            curves.add(event)
    data, recipe = settings.get("data"), settings.get("recipe")
    if not isinstance(data, dict | None):
        raise RunError(f"{CONFIG}: data is {str(data)[:60]!r}, and should be a group of settings")
    summary = {
        "recipe": None if recipe is None else _text(str(recipe)),
        "data": _text(str((data or {}).get("source") or "")) or None,
        "step": last.get("step", 0),
        "elapsed_s": last.get("elapsed_s"),
        "loss": last.get("loss"),
        "is_done": (path / "bundle").is_dir(),
        "last": {key: value for key, value in last.items() if key.startswith("val_")},
        "pictures": [file for file in PICTURES if (path / file).is_file()],
    }
    whole = {"curves": curves.thinned(), "messages": list(messages), "settings": flat}
    return {**summary, **(whole if is_whole else {})}


class _Curves:
    """By figure its points (step, seconds, value), every second one dropped whenever there are too many."""

    def __init__(self) -> None:
        self._points: dict[str, list[tuple[float, float, float]]] = {}
        self._apart: dict[str, tuple[int, int]] = {}
        self._last: dict[str, tuple[float, float, float]] = {}
        self._seconds = 0.0

    def add(self, event: dict[str, Any]) -> None:
        """The figures of one event."""
        figures = {key: value for key, value in event.items() if _is_figure(value)}
        self._seconds = figures.get("elapsed_s", self._seconds)
        step = figures.get("step", 0)
        for key, value in figures.items():
            if key in _ABOUT:
                continue
            if key not in self._points and len(self._points) >= _MAX_CURVES:
                raise RunError(f"{EVENTS}: holds more than {_MAX_CURVES} figures")
            self._add(key, (step, self._seconds, value))

    def _add(self, key: str, point: tuple[float, float, float]) -> None:
        points = self._points.setdefault(key, [])
        apart, num = self._apart.get(key, (1, 0))
        if num % apart == 0:
            points.append(point)
        if len(points) > _MAX_POINTS:
            del points[1::2]
            apart *= 2
        self._apart[key], self._last[key] = (apart, num + 1), point

    def thinned(self) -> dict[str, list[tuple[float, float, float]]]:
        """The points that are left, with the last that came."""
        return {
            key: points if points[-1] == self._last[key] else [*points, self._last[key]]
            for key, points in self._points.items()
        }


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; the last may be half written.

    Raises:
        RunError: the file or a line is too large, or holds what cannot be shown.
    """
    _check_size(path, _MAX_EVENTS_BYTES)
    with path.open("rb") as file:
        for number in range(1, 2**62):
            line = file.readline(_MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > _MAX_LINE_BYTES:
                raise RunError(f"{EVENTS}: line {number} is longer than {_MAX_LINE_BYTES} bytes")
            event = _event(line, number)
            if isinstance(event, dict):
                yield event


def _event(line: bytes, number: int) -> Any:
    try:
        event = json.loads(line.decode("utf-8", "replace"))
    except ValueError:  # A half-written line, or a number of thousands of digits.
        return None
    except RecursionError:
        raise RunError(f"{EVENTS}: line {number} is nested too deeply") from None
    if not isinstance(event, dict):
        return None
    for key, value in event.items():
        if isinstance(value, int) and abs(value) > 2**63:
            raise RunError(f"{EVENTS}: line {number} holds a number of {value.bit_length()} bits")
        for text in (key, value):
            if isinstance(text, str):
                _text(text)
    return event


def _settings(path: Path) -> dict[str, Any]:
    _check_size(path, _MAX_CONFIG_BYTES)
    try:
        read = read_yaml(path)
    except RecursionError:
        raise RunError(f"{CONFIG}: is nested too deeply") from None
    if not isinstance(read, dict | None):
        raise RunError(f"{CONFIG}: holds no settings")
    return without_secrets(read or {})


def _flat(settings: Any) -> list[tuple[str, Any]]:
    """By dotted path, as the command line sets them.

    Raises:
        RunError: there are too many, or they are nested too deeply.
    """
    found: list[tuple[str, Any]] = []
    budget = [_MAX_SETTINGS]

    def visit(value: Any, place: str, depth: int) -> None:
        budget[0] -= 1
        if budget[0] < 0:
            raise RunError(f"{CONFIG}: holds more than {_MAX_SETTINGS} settings, or many references to the same")
        if depth > _MAX_DEPTH or len(place) > _MAX_TEXT:
            raise RunError(f"{CONFIG}: is nested too deeply")
        if isinstance(value, dict) and (value or depth):
            for key, inner in value.items():
                visit(inner, f"{place}.{_text(str(key))}" if place else _text(str(key)), depth + 1)
        elif isinstance(value, list):
            found.append((place, [_plain(one, budget, depth + 1) for one in value]))
        elif depth:
            found.append((place, _plain(value, budget, depth)))

    visit(settings, "", 0)
    return found


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    """A value as JSON can carry it."""
    budget[0] -= 1
    if budget[0] < 0:
        raise RunError(f"{CONFIG}: holds more than {_MAX_SETTINGS} settings, or many references to the same")
    if depth > _MAX_DEPTH:
        raise RunError(f"{CONFIG}: is nested too deeply")
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
            return {_text(str(key)): _plain(inner, budget, depth + 1) for key, inner in value.items()}
        case _:
            return _text(str(value))


def _text(text: str) -> str:
    """A text cut to a length.

    Raises:
        RunError: it holds half of a surrogate pair, which no file can be encoded with.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RunError(f"holds a character that is no Unicode ({text[error.start]!r})") from None
    return text[:_MAX_TEXT]


def _check_size(path: Path, most: int) -> None:
    size = path.stat().st_size
    if size > most:
        raise RunError(f"{path.name}: has {size} bytes; at most {most} are read")
