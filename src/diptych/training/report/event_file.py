"""Reads `events.jsonl`, the event log of a run, and tolerates damaged lines."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from diptych.core.files import write_text

_CURVES = ("loss", "image_to_text", "text_to_image")


class EventLines(NamedTuple):
    """The content of an event log."""

    lines: list[tuple[str, dict[str, Any]]]
    """(text without the line break, parsed object) of each line that is not damaged."""
    num_damaged: int
    """Number of damaged lines. A last line without a line break does not count: a process was killed while writing it."""


def read_events(log: Path) -> EventLines:
    """Read an event log: messages, logged steps and validations, in their order.

    A line is damaged if it is not UTF-8, not a JSON object, or a step or validation whose step or metrics are not numbers.

    Raises:
        OSError: the file cannot be read.
    """
    *complete, _unfinished = log.read_bytes().split(b"\n")
    parsed = [(line, _event(line)) for line in complete]
    lines = [(line.decode(), event) for line, event in parsed if event is not None]
    return EventLines(lines, len(complete) - len(lines))


def forget_after(log: Path, step: int) -> int:
    """Remove the steps and validations after `step`, and damaged lines, when a run resumes from a checkpoint of that step.

    Returns the number of damaged lines; 0 if the log does not exist.

    Raises:
        OSError: the file cannot be read or replaced.
    """
    if not log.exists():
        return 0
    events = read_events(log)
    write_text(log, "".join(f"{line}\n" for line, event in events.lines if event.get("step", 0) <= step))
    return events.num_damaged


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and _has_numbers(event) else None


def _has_numbers(event: dict[str, Any]) -> bool:
    """Whether the step and the metrics that `curves.png` shows are present and numbers; True for messages."""
    needed = [f"{prefix}{name}" for prefix in ("", "val_") if f"{prefix}loss" in event for name in _CURVES]
    needed += ["step"] if needed or "step" in event else []
    return all(isinstance(event.get(name), int | float) for name in needed)
