"""The store on disk: what is added is found, and nothing that breaks breaks it."""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diptych.core.errors import BusyError, ConfigError, IndexingError
from diptych.index.entry import Entry, Stamp
from diptych.index.exact import nearest
from diptych.index.filters import parse_filter
from diptych.index.store import Index, create_index

DIM = 8


def unit(num: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((num, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def entry(number: int, **more: Any) -> Entry:
    made = Entry(key=f"/photos/{number}.jpg", digest=f"d{number}", stamp=Stamp(size=number, modified_ns=number * 10**9))
    return replace(made, **more)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Ten pictures."""
    made = create_index(tmp_path / "index", dim=DIM, model="m", bundle="b")
    vectors = unit(10)
    entries = [
        entry(i, width=100 * i, taken=f"2024-01-{i + 1:02d} 10:00:00", captions=(f"caption {i}",)) for i in range(10)
    ]
    made.add(entries, {e.digest: v for e, v in zip(entries, vectors, strict=True)})
    return made


def test_what_is_added_is_found(index: Index) -> None:
    vectors = unit(10)
    for number, answer in enumerate(index.search(vectors, top=3)):
        expected = np.argsort(-(vectors @ vectors[number]), kind="stable")[:3]
        assert [found.entry.key for found in answer] == [f"/photos/{row}.jpg" for row in expected]
        assert answer[0].score == pytest.approx(1)
    assert index.entries()[3].captions == ("caption 3",)
    assert Index(index.folder).search(vectors[:1], top=99)[0][0].entry == index.entries()[0]
    assert index.verify() == []


def test_copies_share_a_vector_and_are_all_found(index: Index) -> None:
    index.add([entry(20, digest="d4"), entry(21, digest="d4")], {})
    assert index.size() | {"bytes": 0} == {"entries": 12, "vectors": 10, "unused": 0, "unreadable": 0, "bytes": 0}
    found = index.search(unit(10)[4:5], top=3)[0]
    assert [hit.entry.key for hit in found] == ["/photos/20.jpg", "/photos/21.jpg", "/photos/4.jpg"]
    assert index.groups(0.999) == [["/photos/20.jpg", "/photos/21.jpg", "/photos/4.jpg"]]


def test_what_is_removed_is_not_found_and_goes_when_written_anew(index: Index) -> None:
    before = {hit.entry.key: hit.score for hit in index.search(unit(10)[:1], top=10)[0]}
    gone = [f"/photos/{i}.jpg" for i in range(0, 10, 2)]
    assert index.remove([*gone, "/nowhere.jpg"]) == 5
    found = index.search(unit(10)[:1], top=5)[0]
    left = {key: score for key, score in before.items() if key not in gone}
    assert {hit.entry.key: hit.score for hit in found} == pytest.approx(left)
    reader = Index(index.folder)
    assert index.compact() == 5
    assert index.compact() == 0
    for opened in (index, reader):
        (again,) = opened.search(unit(10)[:1], top=5)
        assert [hit.entry for hit in again] == [hit.entry for hit in found]
    assert len(list(index.folder.glob("vectors-*"))) == 1
    assert index.verify() == []


def test_pictures_that_cannot_be_read_are_known_until_they_change(index: Index) -> None:
    stamp = Stamp(size=5, modified_ns=7)
    index.add([], {}, broken=[("/photos/bad.jpg", stamp, "is not a picture")])
    assert index.stamps()["/photos/bad.jpg"] == stamp
    assert index.broken() == {"/photos/bad.jpg": "is not a picture"}
    index.add([entry(30, key="/photos/bad.jpg")], {"d30": unit(1)[0]})
    assert index.broken() == {}


def test_an_addition_that_was_cut_off_is_written_over(index: Index) -> None:
    file = index.folder / "vectors-0.f32"
    file.write_bytes(file.read_bytes() + b"half a vector")
    assert "an addition that was cut off" in index.verify()[0]
    assert index.search(unit(10)[:1], top=1)[0][0].score == pytest.approx(1)
    index.add([entry(40)], {"d40": unit(1, seed=9)[0]})
    assert index.verify() == []
    assert index.search(unit(1, seed=9), top=1)[0][0].entry.key == "/photos/40.jpg"


def test_damage_is_named(index: Index, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        index.close()
        return Path(shutil.copytree(index.folder, tmp_path / name))

    short = damaged("short")
    (short / "vectors-0.f32").write_bytes((short / "vectors-0.f32").read_bytes()[:-1])
    assert "has 319 bytes of 320" in Index(short).verify()[0]
    with pytest.raises(IndexingError, match="index verify"):
        Index(short).search(unit(1), top=1)
    zeroed = damaged("zeroed")
    (zeroed / "vectors-0.f32").write_bytes(bytes(320))
    assert "10 vectors are not of unit length" in Index(zeroed).verify()[0]
    database = damaged("database")
    (database / "index.db").write_bytes(b"no database at all, but of some length" * 200)
    with pytest.raises(IndexingError, match="cannot be read"):
        Index(database)


def test_nothing_is_half_added(index: Index) -> None:
    with pytest.raises(IndexingError, match="has no vector"):
        index.add([entry(50), entry(51)], {"d50": unit(1)[0]})
    with pytest.raises(IndexingError, match="vectors of 8 numbers"):
        index.add([entry(50)], {"d50": np.ones(3, dtype=np.float32)})
    with pytest.raises(IndexingError, match="cannot be written"):
        index.add([entry(60), entry(60)], {"d60": unit(1)[0]})  # The same key twice.
    assert len(index) == 10
    index.add([entry(50)], {"d50": unit(1, seed=3)[0]})
    assert index.verify() == []
    assert index.search(unit(1, seed=3), top=1)[0][0].entry.key == "/photos/50.jpg"


def test_one_writes_at_a_time(index: Index) -> None:
    with index.writing(), pytest.raises(BusyError, match="is being written by process"), index.writing(wait_s=0.05):
        pass
    with index.writing(wait_s=0.05):
        assert Index(index.folder).search(unit(1), top=1)


def test_folders_that_hold_no_index(tmp_path: Path) -> None:
    with pytest.raises(IndexingError, match="holds no index"):
        Index(tmp_path)
    (tmp_path / "letter.txt").write_text("x", encoding="utf-8")
    with pytest.raises(IndexingError, match="is not empty"):
        create_index(tmp_path, dim=2, model="m", bundle="b")
    made = create_index(tmp_path / "new", dim=2, model="m", bundle="b")
    made.close()
    with sqlite3.connect(tmp_path / "new" / "index.db") as database:
        database.execute("UPDATE about SET value = '9' WHERE name = 'format'")
    database.close()
    with pytest.raises(IndexingError, match="format 9"):
        Index(tmp_path / "new")


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
def test_the_nearest_are_those_of_a_sort(num: int, num_queries: int, top: int, seed: int) -> None:
    vectors, queries = unit(num, seed), unit(num_queries, seed + 100)
    rows, scores = nearest(vectors, queries, top=top)
    whole = queries @ vectors.T
    np.testing.assert_allclose(scores, -np.sort(-whole, axis=1)[:, :top], rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(whole, rows, axis=1), scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("width >= 800", [8, 9]),
        ("taken < 2024-01-03", [0, 1]),
        ("taken > '2024-01-09 00:00:00' or path like '%/0.jpg'", [0, 8, 9]),
        ("not (width < 800 and taken >= 2024-01-01)", [8, 9]),
        ('caption like "%caption 3%"', [3]),
        ("size = 4 and width = 400", [4]),
        ("modified < 1970-01-01 00:00:02".replace("1970-01-01 00:00:02", "'1970-01-01 00:00:02'"), [0, 1]),
        ("width != 0 and not not width <= 100", [1]),
    ],
)
def test_filters_apply_before_ranking(index: Index, text: str, numbers: list[int]) -> None:
    expected = {f"/photos/{number}.jpg" for number in numbers}
    assert {found.key for found in index.entries(parse_filter(text))} == expected
    found = index.search(unit(10)[:1], top=10, chosen=parse_filter(text))[0]
    assert {hit.entry.key for hit in found} == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("widht > 3", "at 1: unknown field 'widht'; did you mean 'width'"),
        ("width >", "at 8: expected a value, found the end"),
        ("width 3", "at 7: '3' is no comparison"),
        ("width > wide", "at 9: width is a number, 'wide' is none"),
        ("width > 3 height < 2", "at 11: expected and, or, or the end"),
        ("(width > 3", "at 11: expected \\)"),
        ("", "at 1: expected a field, found the end"),
        ("path = 'x", "at 8: cannot be read"),
        ("width > 3; DROP TABLE entries", "at 9: width is a number, '3;' is none"),
    ],
)
def test_filters_that_do_not_parse(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_filter(text)
