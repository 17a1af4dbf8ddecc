"""What commands print: tables for people, JSON for programs. Control characters in it are made visible, also in a pipe."""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diptych.core.address import redacted
from diptych.core.formatting import plain
from diptych.core.terminal import open_console, visible, visible_json

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from diptych.images.formats import LeftOut

Json = Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.", negative="", show_default=False)]
"""The option that every command with figures has."""

_PIPED_WIDTH = 200
"""Columns of a table that no terminal shows: wide enough that nothing is folded."""


@lru_cache(maxsize=1)
def console() -> "Console":
    """Standard output."""
    return open_console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


@lru_cache(maxsize=1)
def errors() -> "Console":
    """Standard error: what is under way, on a terminal."""
    return open_console(stderr=True)


def print_json(value: Any) -> None:
    """Print dataclasses, arrays and paths as JSON, and nothing else."""
    sys.stdout.write(json_text(value, encoding=sys.stdout.encoding or "utf-8") + "\n")


def json_text(value: Any, *, encoding: str = "utf-8") -> str:
    """Dataclasses, arrays and paths as JSON, without control characters; in ASCII where the encoding lacks a letter."""
    text = visible_json(json.dumps(plain(value), indent=2, ensure_ascii=False))
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(plain(value), indent=2)
    return text


def escape_unencodable() -> None:
    """What standard output has no letter for is shown as an escape, as standard error does it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str = "", *, style: str = "") -> None:
    """One line on standard output. Brackets and colons in it are names of files, not colours or pictures.

    Args:
        text: a newline in it is shown as an escape, like every other control character.
        style: Rich's name of a style, such as `bold`.
    """
    console().print(visible(text), style=style or None, markup=False, emoji=False, soft_wrap=True)


def confirm(question: str) -> bool:
    """Ask for confirmation on a terminal; "y" and "yes" confirm. Returns False elsewhere, such as in a pipe."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"{visible(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; every column but the first is aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    _print_title(title)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(Text(visible(heading)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console().print(table)


def print_facts(title: str, facts: Mapping[str, str]) -> None:
    """Print names and what they are, in two columns; folded on a terminal, a line each elsewhere."""
    from textwrap import wrap

    from rich.text import Text

    _print_title(title)
    shown = {visible(name): visible(fact) for name, fact in facts.items()}
    indent = max(map(len, shown)) + 2
    for name, fact in shown.items():
        lines = wrap(fact, max(20, console().width - indent)) if console().is_terminal else [fact]
        for i, line in enumerate(lines or [""]):
            start = Text((name if i == 0 else "").ljust(indent), style="dim")
            console().print(start.append(Text(line, style="not dim")), soft_wrap=True)


def _print_title(title: str) -> None:
    say()
    say(title, style="bold")


def print_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Say on standard error how many images could not be read, and name the first three."""
    if skipped:
        first = "; ".join(reason for _, reason in skipped[:3])
        warn(f"{len(skipped)} images could not be read and were left out: {first}")


def print_left_out(left_out: "Sequence[LeftOut]") -> None:
    """Print to standard error which pictures have an unsupported format, and what to do: one line per suffix."""
    for left in left_out:
        warn(f"left out: {left}")


def warn(text: str) -> None:
    """One line on standard error, without the secrets of addresses in it."""
    sys.stderr.write(f"diptych: {visible(' '.join(redacted(text).split()))}\n")


def print_traceback(kind: type[BaseException], error: BaseException, trace: "TracebackType | None") -> None:
    """A `sys.excepthook`: as Python shows an error that nobody catches, but visibly."""
    from traceback import format_exception

    sys.stderr.write(visible(redacted("".join(format_exception(kind, error, trace))), keep="\n"))
