"""Readers of an `events.jsonl` for the page that compares runs: the last values, and the curves and messages."""

import json
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

from diptych.core.address import redacted
from diptych.core.errors import RunError

EVENTS = "events.jsonl"
_MAX_TEXT = 2000
_MAX_POINTS = 2000
_MAX_CURVES = 500
_MAX_MESSAGES = 200
_META = frozenset({"step", "epoch", "progress", "elapsed_s", "seconds_left", "skipped"})
"""Fields of a logged step that describe its position in the run. They have no curve."""
_VALIDATION = "val_"
_LISTED = frozenset({"step", "elapsed_s", "loss"})


class LastValues:
    """The last value of each metric that the list of runs shows.

    Only a few lines are parsed: all validations, and the last lines of a block that contain a step, a time and a loss.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, block: bytes, *, first_line: int) -> None:
        """Process complete lines. See `LineReader.add`."""
        for start, end in _lines_with(block, f'"{_VALIDATION}'.encode()):
            metrics = _metrics(_event(block, start, end, first_line))
            self.values |= {key: value for key, value in metrics.items() if key.startswith(_VALIDATION)}
        missing, end = set(_LISTED), len(block)
        while missing and end > 0:
            start = block.rfind(b"\n", 0, end - 1) + 1
            if any(f'"{key}"'.encode() in block[start:end] for key in missing):
                metrics = _metrics(_event(block, start, end, first_line))
                self.values |= {key: metrics[key] for key in missing & metrics.keys()}
                missing -= metrics.keys()
            end = start


class RunCurves:
    """The curve of each metric, and the last messages.

    A curve is a list of points (step, seconds, value) with at most 2,000 points. When it has more, every second one is dropped.
    """

    def __init__(self) -> None:
        self.messages = deque[str](maxlen=_MAX_MESSAGES)
        self._points: dict[str, list[tuple[float, float, float]]] = {}
        self._strides: dict[str, tuple[int, int]] = {}
        """By metric: one in so many points is stored, and how many points there were."""
        self._last: dict[str, tuple[float, float, float]] = {}
        self._seconds = 0.0

    @property
    def num_points(self) -> int:
        """Number of stored points in all curves."""
        return sum(map(len, self._points.values()))

    def add(self, block: bytes, *, first_line: int) -> None:
        """Process complete lines. See `LineReader.add`."""
        start = 0
        while start < len(block):
            end = block.find(b"\n", start) + 1 or len(block)
            event = _event(block, start, end, first_line)
            if event is not None and "message" in event:
                self.messages.append(printable_text(redacted(str(event["message"]))))
            elif event is not None:
                self._add_metrics(_metrics(event))
            start = end

    def _add_metrics(self, metrics: dict[str, float]) -> None:
        self._seconds = metrics.get("elapsed_s", self._seconds)
        step = metrics.get("step", 0)
        for key, value in metrics.items():
            if key in _META:
                continue
            if key not in self._points and len(self._points) >= _MAX_CURVES:
                raise RunError(f"{EVENTS}: holds more than {_MAX_CURVES} metrics")
            self._add_point(key, (step, self._seconds, value))

    def _add_point(self, key: str, point: tuple[float, float, float]) -> None:
        points = self._points.setdefault(key, [])
        stride, num = self._strides.get(key, (1, 0))
        if num % stride == 0:
            points.append(point)
        if len(points) > _MAX_POINTS:
            del points[1::2]
            stride *= 2
        self._strides[key], self._last[key] = (stride, num + 1), point

    def thinned(self) -> dict[str, list[tuple[float, float, float]]]:
        """Copies of the stored curves. The most recent point is always included."""
        return {
            key: [*points] if points[-1] == self._last[key] else [*points, self._last[key]]
            for key, points in self._points.items()
        }


def printable_text(text: str) -> str:
    """The first 2,000 characters of a text.

    Raises:
        RunError: the text contains half of a surrogate pair, which UTF-8 cannot encode.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RunError(f"holds a character that is not valid Unicode ({text[error.start]!r})") from None
    return text[:_MAX_TEXT]


def _lines_with(block: bytes, word: bytes) -> Iterator[tuple[int, int]]:
    """Offsets (start, end) of each line that contains a word."""
    end = 0
    while (found := block.find(word, end)) >= 0:
        start, end = block.rfind(b"\n", 0, found) + 1, block.find(b"\n", found) + 1 or len(block)
        yield start, end


def _metrics(event: dict[str, Any] | None) -> dict[str, float]:
    return {key: value for key, value in (event or {}).items() if _is_metric(value)}


def _is_metric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _event(block: bytes, start: int, end: int, first_line: int) -> dict[str, Any] | None:
    """The JSON object in the line from `start` to `end`; None if the line does not contain one.

    Raises:
        RunError: the line is nested too deeply, has a number beyond 64 bits, or text that is not valid Unicode.
    """
    try:
        event = json.loads(block[start:end].decode("utf-8", "replace"))
    except ValueError:  # An incomplete line, or a number with thousands of digits.
        return None
    except RecursionError:
        raise RunError(f"{EVENTS}: line {_number(block, start, first_line)} is nested too deeply") from None
    if not isinstance(event, dict):
        return None
    for key, value in event.items():
        if isinstance(value, int) and abs(value) > 2**63:
            number = _number(block, start, first_line)
            raise RunError(f"{EVENTS}: line {number} holds a number of {value.bit_length()} bits")
        for text in (key, value):
            if isinstance(text, str):
                printable_text(text)
    return event


def _number(block: bytes, start: int, first_line: int) -> int:
    return first_line + block.count(b"\n", 0, start)
