"""CSV files that a spreadsheet computes nothing of."""

import csv
from pathlib import Path

import pytest

from diptych.core.csv_file import csv_cell, write_csv


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t=", "\r=", "\n=", " =", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
)
def test_what_a_spreadsheet_would_compute_is_text(start: str) -> None:
    assert csv_cell(f"{start}1+cmd|'/C calc'!A0") == f"'{start}1+cmd|'/C calc'!A0"


@pytest.mark.parametrize("value", ["-0.5", "+1", "-1e-05", "-.5", "1", "a-b", "a=b", "'=x", ""])
def test_numbers_and_other_texts_stay(value: str) -> None:
    assert csv_cell(value) == value


def test_values_that_are_no_text() -> None:
    assert [csv_cell(value) for value in (-0.5, -3, True, None, Path("-x"))] == ["-0.5", "-3", "True", "", "'-x"]


def test_a_table_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, ["=x", "y"], [['=HYPERLINK("http://a")', -0.5], ["a,\nb", None], ["\udcff", 1]])
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["'=x", "y"],
            ['\'=HYPERLINK("http://a")', "-0.5"],
            ["a,\nb", ""],
            ["\\udcff", "1"],
        ]
