"""Write CSV files. No other module of the project does."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from diptych.core.files import atomic_write

_FORMULA = re.compile(r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""Matches the start of a cell that a spreadsheet may evaluate; the last four are the full-width forms of the first four."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def csv_cell(value: object) -> str:
    """Return the text of a cell, with a leading apostrophe if a spreadsheet would read it as a formula.

    Args:
        value: numbers, and texts that are numbers, are unchanged; None becomes an empty cell.

    >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell(-0.5), csv_cell(None)
    ("'=1+1", '-0.5', '-0.5', '')
    """
    text = "" if value is None else str(value)
    is_number = isinstance(value, int | float) or _NUMBER.fullmatch(text)
    return f"'{text}" if not is_number and _FORMULA.match(text) else text


def write_csv(path: Path, headings: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Create or replace a UTF-8 file with comma-separated values; every cell is converted by `csv_cell`.

    Args:
        path: the file.
        headings: the cells of the first row.
        rows: the cells of the other rows.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file).writerows([csv_cell(value) for value in row] for row in (headings, *rows))
