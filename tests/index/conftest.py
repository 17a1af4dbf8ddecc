"""An index of ten pictures, in a folder and in PostgreSQL."""

from collections.abc import Iterator

import pytest

from diptych.index import build_signs
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
