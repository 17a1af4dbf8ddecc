"""The table of the paper's claims is true: each file, symbol and line is there."""

import inspect
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| `([\w/]+\.py)` \| `([\w.]+)` \| `(.+)` \|$", re.MULTILINE)
TABLE = (ROOT / "docs" / "paper-to-code.md").read_text("utf-8").split("## Where we depart")[0]
CLAIMS = ROW.findall(TABLE)


def test_every_row_is_read() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("|")]
    assert len(CLAIMS) == len(rows) - 2 >= 40


@pytest.mark.parametrize(("section", "claim", "file", "symbol", "line"), CLAIMS, ids=[row[1][:40] for row in CLAIMS])
def test_the_line_stands_where_the_table_says(section: str, claim: str, file: str, symbol: str, line: str) -> None:
    assert re.search(r"\d|fig|table", section), claim
    module = import_module("diptych." + file.removesuffix(".py").replace("/", "."))
    assert module.__file__ == str(ROOT / "src" / "diptych" / file)
    found = reduce(getattr, symbol.split("."), module)
    source = inspect.getsource(found.fget if isinstance(found, property) else found if callable(found) else module)
    assert _flat(line.replace("\\|", "|")) in _flat(source)


def _flat(code: str) -> str:
    """Without white space and trailing commas, so that a formatter's line breaks do not matter."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s", "", code))
