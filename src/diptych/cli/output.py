"""Prints the output of commands as text, tables and JSON. Control characters are always escaped."""

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

Json = Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")]
"""The option `--json`."""

_PIPED_WIDTH = 200
"""Width of tables in characters if the output is not a terminal, so that lines are not wrapped."""


@lru_cache(maxsize=1)
def console() -> "Console":
    """The console for standard output."""
    return open_console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


@lru_cache(maxsize=1)
def errors() -> "Console":
    """The console for standard error, where progress is shown."""
    return open_console(stderr=True)


def print_json(value: Any) -> None:
    """Print a value as JSON. It may contain dataclasses, arrays and paths."""
    sys.stdout.write(json_text(value, encoding=sys.stdout.encoding or "utf-8") + "\n")


def json_text(value: Any, *, encoding: str = "utf-8") -> str:
    """A value as JSON, without control characters. It may contain dataclasses, arrays and paths.

    Args:
        value: the value.
        encoding: encoding of the output. If it lacks a character, all non-ASCII characters are escaped.
    """
    text = visible_json(json.dumps(plain(value), indent=2, ensure_ascii=False))
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(plain(value), indent=2)
    return text


def escape_unencodable() -> None:
    """Make standard output escape characters that its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_line(text: str = "", *, style: str = "") -> None:
    """Print one line on standard output. Rich's markup and emoji codes in the text are not interpreted.

    Args:
        text: the line. Control characters in it, such as newlines, are escaped.
        style: name of a Rich style, such as `bold`.
    """
    console().print(visible(text), style=style or None, markup=False, emoji=False, soft_wrap=True)


def confirm(question: str) -> bool:
    """Whether the user confirms a question with "y" or "yes". Always False if the program does not run on a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"{visible(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. All columns except the first are right-aligned."""
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
    """Print names and values in two columns. Long values are wrapped on a terminal only."""
    from textwrap import wrap

    from rich.text import Text

    _print_title(title)
    escaped = {visible(name): visible(fact) for name, fact in facts.items()}
    indent = max(map(len, escaped)) + 2
    for name, fact in escaped.items():
        lines = wrap(fact, max(20, console().width - indent)) if console().is_terminal else [fact]
        for i, line in enumerate(lines or [""]):
            start = Text((name if i == 0 else "").ljust(indent), style="dim")
            console().print(start.append(Text(line, style="not dim")), soft_wrap=True)


def _print_title(title: str) -> None:
    print_line()
    print_line(title, style="bold")


def print_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Print to standard error how many images could not be read, and the reasons for the first three."""
    if skipped:
        first = "; ".join(reason for _, reason in skipped[:3])
        warn(f"{len(skipped)} images could not be read and were left out: {first}")


def print_left_out(left_out: "Sequence[LeftOut]") -> None:
    """Print to standard error which image files have an unsupported format, and what to do: one line per suffix."""
    for left in left_out:
        warn(f"left out: {left}")


def warn(text: str) -> None:
    """Print one line on standard error, without secrets in addresses."""
    sys.stderr.write(f"diptych: {visible(' '.join(redacted(text).split()))}\n")


def print_traceback(kind: type[BaseException], error: BaseException, trace: "TracebackType | None") -> None:
    """A `sys.excepthook` that prints tracebacks without control characters and without secrets in addresses."""
    from traceback import format_exception

    sys.stderr.write(visible(redacted("".join(format_exception(kind, error, trace))), keep="\n"))
