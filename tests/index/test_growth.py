"""Costs that do not grow with an index: kept counts, additions of a few pictures, filters, pages, removals."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from diptych.core.errors import IndexingError
from diptych.index import local_search
from diptych.index.entry import FileStat
from diptych.index.exact import nearest
from diptych.index.filters import Filter, parse_filter
from diptych.index.local import LocalIndex
from diptych.index.merge import merge
from diptych.index.open_index import create_index, open_index
from diptych.index.protocol import Index
from diptych.index.row_counts import COUNTED, drop_counts
from diptych.index.tables import set_about, to_entry
from diptych.index.vector_file import VectorFile
from tests.index.databases import changed_database, noted_statements
from tests.index.pictures import DIM, add, add_ten, compact, entry, keys_of, unit

FILTERS = ["width >= 0", "width > 400", "path like '%/3.jpg'", "caption like 'CAP_ion 7'", "not caption = 'caption 2'"]


@pytest.fixture
def folder(tmp_path: Path) -> LocalIndex:
    made = create_index(tmp_path / "index", dim=DIM, model="m", bundle="b")
    assert isinstance(made, LocalIndex)
    add_ten(made)
    return made


def _counts(index: LocalIndex) -> dict[str, int]:
    """The kept counts, which equal the numbers of rows."""
    with closing(sqlite3.connect(index.folder / "index.db")) as database:
        kept = dict(database.execute("SELECT name, num FROM counts").fetchall())
        assert kept == {name: database.execute(sql).fetchone()[0] for name, sql in COUNTED.items()}
    size = index.size()
    told = {
        "entries": size["entries"],
        "broken": size["unreadable"],
        "unused": size["unused"],
        "lost": len(index.lost()),
    }
    assert told == kept
    return kept


def test_counts_follow_every_change(folder: LocalIndex) -> None:
    assert _counts(folder) == {"entries": 10, "broken": 0, "unused": 0, "lost": 0}
    add(folder, [entry(20, digest="d4")], {}, broken=[("/photos/bad.jpg", FileStat(size=1, modified_ns=1), "odd")])
    assert _counts(folder) == {"entries": 11, "broken": 1, "unused": 0, "lost": 0}
    assert folder.remove(["/photos/4.jpg", "/photos/5.jpg", "/nowhere.jpg"]) == 2
    assert _counts(folder) == {"entries": 10 - 1, "broken": 1, "unused": 1, "lost": 0}
    add(folder, [entry(5)], {}, gone=["/photos/6.jpg", "/photos/bad.jpg"])  # The content of 5 comes back.
    assert _counts(folder) == {"entries": 9, "broken": 1 - 1, "unused": 1, "lost": 0}
    add(folder, [entry(0, digest="new")], {"new": unit(1, seed=3)[0]})
    assert _counts(folder)["unused"] == 2
    assert (compact(folder), _counts(folder)["unused"], folder.verify()) == (2, 0, [])
    with changed_database(folder) as database:
        database.execute("DELETE FROM vectors WHERE digest = 'd7'")
    assert (_counts(folder)["lost"], folder.lost()) == (1, {"/photos/7.jpg"})


def test_an_index_without_counts_gets_them_at_the_first_change(folder: LocalIndex) -> None:
    with closing(sqlite3.connect(folder.folder / "index.db")) as database:  # As earlier versions wrote it.
        for name in (
            "entry_added",
            "entry_removed",
            "vector_added",
            "vector_removed",
            "broken_added",
            "broken_removed",
        ):
            database.execute(f"DROP TRIGGER {name}")
        database.execute("DROP TABLE counts")
        database.execute("DELETE FROM entries WHERE key = '/photos/1.jpg'")
        database.commit()
    with open_index(folder.folder) as again:
        assert isinstance(again, LocalIndex)
        assert (len(again), again.size()["unused"], again.verify()) == (9, 1, [])
        again.remove(["/photos/2.jpg"])
        assert _counts(again) == {"entries": 8, "broken": 0, "unused": 2, "lost": 0}


@pytest.mark.parametrize(
    "damage", ["UPDATE counts SET num = 8 WHERE name = 'entries'", "DROP TRIGGER entry_added", "DELETE FROM counts"]
)
def test_wrong_counts_are_found_and_repaired(folder: LocalIndex, damage: str) -> None:
    with closing(sqlite3.connect(folder.folder / "index.db")) as database:
        database.execute(damage)
        database.commit()
    assert folder.verify() == ["index.db has wrong counts of its rows; the next index add counts again"]
    with folder.writing():
        folder.repair()
    assert (folder.verify(), len(folder)) == ([], 10)


def test_of_a_folder_only_its_pictures_are_read(index: Index) -> None:
    add(index, [entry(30, key="/photos-2/a.jpg", target="/elsewhere")], {"d30": unit(1, seed=9)[0]})
    add(index, [], {}, broken=[("/photos/bad.jpg", FileStat(size=1, modified_ns=1), "odd")])
    stamps, everywhere = index.stamps(["/photos"]), index.stamps()
    assert {*everywhere} - {*stamps} == {"/photos-2/a.jpg"}
    assert index.stamps(["/photos/"]) == stamps
    assert index.stamps(["/"]) == everywhere == index.stamps(["/photos", "/photos-2", "/photos"])
    assert index.stamps(["/photos/3.jpg", "/photo"]) == {}
    assert index.targets(["/photos-2"]) == {"/photos-2/a.jpg": "/elsewhere"}
    assert (index.targets(["/photos"]), index.sidecars(["/photos"])) == ({}, {})
    assert (index.broken(["/photos-2"]), index.broken(["/photos"])) == ({}, {"/photos/bad.jpg": "odd"})
    assert index.keys_at("/photos-2") == ["/photos-2/a.jpg"] == index.keys_at("/photos-2/a.jpg")
    assert index.keys_at("/") == index.keys() == [e.key for e in index.entries()]
    assert index.num_broken() == 1


def test_entries_come_in_portions(index: Index, tmp_path: Path) -> None:
    whole = index.entries()
    assert index.entries(after="/photos/3.jpg", limit=2) == whole[4:6]
    assert index.entries(parse_filter("width > 400"), limit=3) == whole[5:8]
    assert index.without_phash() == whole
    with create_index(tmp_path / "other", dim=DIM, model="m", bundle="b") as other:
        assert merge(other, [index]) == 10
        assert other.entries() == whole


@pytest.mark.parametrize("where", [None, *FILTERS])
def test_a_page_is_a_part_of_a_larger_request(index: Index, where: str | None) -> None:
    add(index, [entry(20, digest="d4", width=900), entry(21, digest="d4", width=5)], {})  # One vector, three pictures.
    index.remove(["/photos/6.jpg"])  # A vector without a picture.
    selected = None if where is None else parse_filter(where)
    queries = unit(3, seed=5)
    whole = index.search(queries, top=99, selected=selected)
    for skip in range(13):
        for top in (skip, skip + 1, skip + 4, 99):
            pages = index.search(queries, top=top, skip=skip, selected=selected)
            assert pages == [found[skip:top] for found in whole], (skip, top)
    assert index.search(queries, top=2, skip=5, selected=selected) == [[], [], []]


def _brute_force(index: LocalIndex, queries: Any, top: int, selected: Filter | None) -> list[list[str]]:
    passing, scores = index.entries(selected), dict[str, Any]()
    vectors = index.vectors([e.digest for e in passing])
    for e in passing:
        scores[e.key] = queries @ vectors[e.digest]
    answers = []
    for number in range(len(queries)):
        answers.append(sorted(scores, key=lambda key: (-round(float(scores[key][number]), 5), key))[:top])
    return answers


def test_filters_are_applied_to_the_nearest_or_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_search, "_SMALL", 100)
    monkeypatch.setattr(local_search, "_SAMPLE", 100)
    num, vectors, queries = 2000, unit(2000, seed=1), unit(4, seed=2)
    entries = [entry(row, width=row, captions=(f"{row}",)) for row in range(num)]
    statements = noted_statements(monkeypatch)
    with create_index(tmp_path / "index", dim=DIM, model="m", bundle="b") as index:
        assert isinstance(index, LocalIndex)
        add(index, entries, {e.digest: vector for e, vector in zip(entries, vectors, strict=True)})
        for where in (
            "width > 600",  # Passes many: the nearest are checked.
            "width < 2",  # Passes few: all are checked.
            "width > 5000",
            "caption = '7'",
        ):
            selected = parse_filter(where)
            statements.clear()
            found = index.search(queries, top=5, selected=selected)
            assert 0 < max(num_rows for _, num_rows in statements) < 300, "no statement reads a large part of the index"
            assert keys_of(found) == _brute_force(index, queries, 5, selected), where


def test_a_filter_that_the_nearest_do_not_pass_is_applied_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_search, "_SMALL", 100)
    num, vectors, query = 2000, unit(2000, seed=1), unit(1, seed=2)
    order = np.argsort(-(vectors @ query[0]))
    widths = np.empty(num, dtype=int)
    widths[order] = np.arange(num)  # The nearest are the narrowest.
    entries = [entry(row, width=int(widths[row])) for row in range(num)]
    with create_index(tmp_path / "index", dim=DIM, model="m", bundle="b") as index:
        assert isinstance(index, LocalIndex)
        add(index, entries, {e.digest: vector for e, vector in zip(entries, vectors, strict=True)})
        selected = parse_filter("width >= 1000")
        assert keys_of(index.search(query, top=5, selected=selected)) == [
            [f"/photos/{row}.jpg" for row in order[1000:1005]]
        ]


def test_filters_see_later_changes(folder: LocalIndex) -> None:
    selected, query = parse_filter("width > 400"), unit(1, seed=4)
    before = keys_of(folder.search(query, top=99, selected=selected))
    assert len(before[0]) == 5
    with open_index(folder.folder) as other:  # Another connection, and then the same.
        add(other, [entry(40, width=1000)], {"d40": unit(1, seed=8)[0]})
    assert len(folder.search(query, top=99, selected=selected)[0]) == 6
    folder.remove(["/photos/9.jpg"])
    assert len(folder.search(query, top=99, selected=selected)[0]) == 5


def test_only_a_page_is_made_into_entries(folder: LocalIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    for copies in (False, True):
        if copies:
            add(folder, [entry(20, digest="d4")], {})
        with monkeypatch.context() as context:
            made = Mock(side_effect=to_entry)
            context.setattr(local_search, "to_entry", made)
            (page,) = folder.search(unit(1), top=9, skip=7)
        assert len(page) == 2
        assert made.call_count <= 3


def test_a_removal_writes_no_vectors_until_many_have_gone(folder: LocalIndex) -> None:
    file = folder.folder / "vectors-0.f32"
    folder.remove(["/photos/0.jpg"])
    with folder.writing():
        assert folder.compact(least_share=0.25) == 0
        assert file.exists()
        folder.remove(["/photos/1.jpg", "/photos/2.jpg"])
        assert folder.compact(least_share=0.25) == 3
    assert not file.exists()
    assert (folder.size()["vectors"], folder.verify()) == (7, [])
    for number in range(3, 10):
        assert folder.search(unit(10)[number : number + 1], top=1)[0][0].entry.key == f"/photos/{number}.jpg"


def test_a_compaction_that_fails_changes_nothing(folder: LocalIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.remove(["/photos/0.jpg"])
    before = folder.search(unit(3), top=9)

    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as context:
        context.setattr("diptych.index.local.set_about", full)
        with pytest.raises(IndexingError, match="full"):
            compact(folder)
    assert (folder.search(unit(3), top=9), folder.verify(), folder.size()["unused"]) == (before, [], 1)
    assert (compact(folder), folder.verify()) == (1, [])


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("caption like '%DOG%'", [0, 1]),
        ("caption = 'a dog'", [0]),
        ("caption like '%\"dog\"%'", [1]),
        ("caption like 'a_d%'", [0]),
        ("caption like '%back\\slash%'", [2]),
        ("caption like '%ab%'", [2, 3]),
        ("caption = 'ab'", [3]),
        ("caption like '%'", [0, 1, 2, 3]),
        ("not caption like '%dog%'", [2, 3, 4]),
        ("caption = 'line\nbreak'", []),
    ],
)
def test_captions_with_characters_that_json_escapes(place: str, where: str, found: list[int]) -> None:
    captions: list[tuple[str, ...]] = [("a dog",), ('the "dog"', "x"), ("ab back\\slash",), ("a\0b",), ()]
    entries = [entry(number, captions=texts) for number, texts in enumerate(captions)]
    with create_index(place, dim=DIM, model="m", bundle="b") as index:
        add(index, entries, {f"d{number}": vector for number, vector in enumerate(unit(5))})
        assert [e.stamp.size for e in index.entries(parse_filter(where))] == found


def test_without_counts_a_search_counts_no_rows(folder: LocalIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    with changed_database(folder) as database:
        drop_counts(database)
    statements = noted_statements(monkeypatch)
    with LocalIndex(folder.folder) as again:
        statements.clear()
        assert len(again.search(unit(2), top=3)[0]) == 3
    assert statements
    assert not [sql for sql, _ in statements if sql in COUNTED.values()]


def test_repairs_and_searches_in_several_threads(folder: LocalIndex) -> None:
    def search(number: int) -> list[str]:
        return [hit.entry.key for _ in range(30) for hit in folder.search(unit(10)[number : number + 1], top=1)[0]]

    with folder.writing(), ThreadPoolExecutor(2) as threads:
        searches = [threads.submit(search, number) for number in range(4)]
        for _ in range(30):
            with changed_database(folder) as database:
                set_about(database, damaged="1")
            folder.repair()
        answers = [one.result() for one in searches]
    assert [set(answer) for answer in answers] == [{f"/photos/{number}.jpg"} for number in range(4)]
    assert folder.verify() == []


def test_an_unused_vector_among_the_nearest_costs_no_exact_scan(
    folder: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def counting(vectors: Any, queries: Any, *, top: int, **more: Any) -> Any:
        asked.append(top)
        return nearest(vectors, queries, top=top, **more)

    add(folder, [entry(row) for row in range(10, 300)], {f"d{row}": unit(300, seed=3)[row] for row in range(10, 300)})
    (first,) = folder.search(unit(1), top=30)
    folder.remove([first[3].entry.key])
    monkeypatch.setattr(local_search, "nearest", counting)
    assert folder.search(unit(1), top=30)[0][:29] == [*first[:3], *first[4:]]
    assert asked == [30, 100]


def test_a_file_that_vanishes_during_verify_is_read_again(folder: LocalIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = VectorFile.faults, list[int]()

    def vanishing(file: VectorFile, *given: Any) -> list[str]:
        calls.append(1)
        if len(calls) == 1:
            with LocalIndex(folder.folder) as other:
                other.remove(["/photos/3.jpg"])
                assert compact(other) == 1
            raise FileNotFoundError(2, "No such file or directory", "vectors-0.f32")
        return whole(file, *given)

    monkeypatch.setattr(VectorFile, "faults", vanishing)
    assert (folder.verify(), len(calls)) == ([], 2)
