"""CSV files: the only code in the project that writes them."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from diptych.core.files import atomic_write

_FORMULA = re.compile(r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that a spreadsheet may compute; the last four are the full-width forms of the first four."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def csv_cell(value: object) -> str:
    """The text of a cell, with an apostrophe before what a spreadsheet would take for a formula.

    Args:
        value: numbers, and texts that are numbers, stay as they are; None gives an empty cell.

    >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell(-0.5), csv_cell(None)
    ("'=1+1", '-0.5', '-0.5', '')
    """
    text = "" if value is None else str(value)
    is_number = isinstance(value, int | float) or _NUMBER.fullmatch(text)
    return f"'{text}" if not is_number and _FORMULA.match(text) else text


def write_csv(path: Path, headings: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Write a table in UTF-8, with commas, in place of any file there; every cell passes `csv_cell`.

    Raises:
        OSError: it cannot be written there.
    """
    with (
        atomic_write(path) as tmp,
        tmp.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file).writerows([csv_cell(value) for value in row] for row in (headings, *rows))
