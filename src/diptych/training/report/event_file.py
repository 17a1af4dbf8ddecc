"""`events.jsonl`: reading a run's log, also where some of its lines are damaged."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from diptych.core.files import write_text

_CURVES = ("loss", "image_to_text", "text_to_image")


class EventLines(NamedTuple):
    """The lines of a log that can be read."""

    lines: list[tuple[str, dict[str, Any]]]
    """Each as it stands in the file, without its line end, and as an object."""
    num_damaged: int
    """How many others there are. A last line without an end is not one of them: a process was killed while it wrote it."""


def read_events(log: Path) -> EventLines:
    """The lines of a log in their order: messages, logged steps and validations.

    A line is damaged if it is not UTF-8, not a JSON object, or a step or validation whose step or figures are not numbers.

    Raises:
        OSError: the file cannot be read.
    """
    *whole, _cut_off = log.read_bytes().split(b"\n")
    read = [(line, _event(line)) for line in whole]
    lines = [(line.decode(), event) for line, event in read if event is not None]
    return EventLines(lines, len(whole) - len(lines))


def forget_after(log: Path, step: int) -> int:
    """Drop what a killed run logged after the checkpoint from which it continues, and what is damaged.

    Returns the number of damaged lines. A log that does not exist has none.

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
    """Whether what curves are drawn from is there and is a number."""
    needed = [name for prefix in ("", "val_") if f"{prefix}loss" in event for name in _prefixed(prefix)]
    needed += ["step"] if needed or "step" in event else []
    return all(isinstance(event.get(name), int | float) for name in needed)


def _prefixed(prefix: str) -> list[str]:
    return [f"{prefix}{name}" for name in _CURVES]
