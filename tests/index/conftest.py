"""An index of ten pictures, in a folder and in PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.index import build_signs
from diptych.index.create_local import create_local_index
from diptych.index.local import LocalIndex
from diptych.index.open_index import create_index
from diptych.index.protocol import Index
from tests.index.pictures import DIM, add_ten


@pytest.fixture(autouse=True)
def _signs_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sign bits are built for small indexes, too, although the exact scan of these is faster."""
    monkeypatch.setattr(build_signs, "MIN_SPEEDUP", 0)


@pytest.fixture
def index(place: str) -> Iterator[Index]:
    """Ten pictures."""
    with create_index(place, dim=DIM, model="m", bundle="b") as made:
        add_ten(made)
        yield made


@pytest.fixture
def local_index(tmp_path: Path) -> Iterator[LocalIndex]:
    """Ten pictures, in a folder."""
    with create_local_index(tmp_path / "index", dim=DIM, model="m", bundle="b") as made:
        add_ten(made)
        yield made
