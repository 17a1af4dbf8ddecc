"""What the page of runs reads of an `events.jsonl`: the last values for the list, and curves and messages of one run."""

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
_ABOUT = frozenset({"step", "epoch", "progress", "elapsed_s", "seconds_left", "skipped"})
"""Of a logged step: where it stands, no curve."""
_VALIDATION = "val_"
_LISTED = frozenset({"step", "elapsed_s", "loss"})


class LastValues:
    """The last value of each figure that the list of runs shows.

    Only the lines that have them are parsed: those of validations, and of a block the last that has a step, a time and a loss.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, block: bytes, *, first_line: int) -> None:
        """Take whole lines."""
        for start, end in _lines_with(block, f'"{_VALIDATION}'.encode()):
            figures = _figures(_event(block, start, end, first_line))
            self.values |= {key: value for key, value in figures.items() if key.startswith(_VALIDATION)}
        missing, end = set(_LISTED), len(block)
        while missing and end > 0:
            start = block.rfind(b"\n", 0, end - 1) + 1
            if any(f'"{key}"'.encode() in block[start:end] for key in missing):
                figures = _figures(_event(block, start, end, first_line))
                self.values |= {key: figures[key] for key in missing & figures.keys()}
                missing -= figures.keys()
            end = start


class RunCurves:
    """By figure its points (step, seconds, value), every second one dropped whenever there are too many; the last messages."""

    def __init__(self) -> None:
        self.messages = deque[str](maxlen=_MAX_MESSAGES)
        self._points: dict[str, list[tuple[float, float, float]]] = {}
        self._apart: dict[str, tuple[int, int]] = {}
        self._last: dict[str, tuple[float, float, float]] = {}
        self._seconds = 0.0

    @property
    def num_points(self) -> int:
        """Points that are kept."""
        return sum(map(len, self._points.values()))

    def add(self, block: bytes, *, first_line: int) -> None:
        """Take whole lines."""
        start = 0
        while start < len(block):
            end = block.find(b"\n", start) + 1 or len(block)
            event = _event(block, start, end, first_line)
            if event is not None and "message" in event:
                self.messages.append(printable_text(redacted(str(event["message"]))))
            elif event is not None:
                self._add_figures(_figures(event))
            start = end

    def _add_figures(self, figures: dict[str, float]) -> None:
        self._seconds = figures.get("elapsed_s", self._seconds)
        step = figures.get("step", 0)
        for key, value in figures.items():
            if key in _ABOUT:
                continue
            if key not in self._points and len(self._points) >= _MAX_CURVES:
                raise RunError(f"{EVENTS}: holds more than {_MAX_CURVES} figures")
            self._add_point(key, (step, self._seconds, value))

    def _add_point(self, key: str, point: tuple[float, float, float]) -> None:
        points = self._points.setdefault(key, [])
        apart, num = self._apart.get(key, (1, 0))
        if num % apart == 0:
            points.append(point)
        if len(points) > _MAX_POINTS:
            del points[1::2]
            apart *= 2
        self._apart[key], self._last[key] = (apart, num + 1), point

    def thinned(self) -> dict[str, list[tuple[float, float, float]]]:
        """The points that are left, with the last that came; the lists are copies."""
        return {
            key: [*points] if points[-1] == self._last[key] else [*points, self._last[key]]
            for key, points in self._points.items()
        }


def printable_text(text: str) -> str:
    """A text cut to a length.

    Raises:
        RunError: it holds half of a surrogate pair, which no file can be encoded with.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RunError(f"holds a character that is no Unicode ({text[error.start]!r})") from None
    return text[:_MAX_TEXT]


def _lines_with(block: bytes, word: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of each line that has a word."""
    end = 0
    while (found := block.find(word, end)) >= 0:
        start, end = block.rfind(b"\n", 0, found) + 1, block.find(b"\n", found) + 1 or len(block)
        yield start, end


def _figures(event: dict[str, Any] | None) -> dict[str, float]:
    return {key: value for key, value in (event or {}).items() if _is_figure(value)}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _event(block: bytes, start: int, end: int, first_line: int) -> dict[str, Any] | None:
    """The object in the line from `start` to `end`; None if there is none.

    Raises:
        RunError: it holds what cannot be shown.
    """
    try:
        event = json.loads(block[start:end].decode("utf-8", "replace"))
    except ValueError:  # A half-written line, or a number of thousands of digits.
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
