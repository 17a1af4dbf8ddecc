"""Indexes of formats 1 and 2: read as they are, upgraded by the first change, never embedded again."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import psycopg
import pytest

from diptych.index.address import is_address, parse_address
from diptych.index.entry import FileStat
from diptych.index.exact import encode
from diptych.index.filters import parse_filter
from diptych.index.local import LocalIndex
from diptych.index.open_index import create_index, open_index
from diptych.index.protocol import Index
from diptych.index.tables import hash_row
from tests.index.pictures import DIM, add, add_ten, build, compact, entry, unit

_SQLITE = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE vectors (digest TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE entries (
    key TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL, modified_ns INTEGER NOT NULL,
    width INTEGER, height INTEGER, taken TEXT, captions TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX entries_by_digest ON entries (digest);
CREATE TABLE broken (
    key TEXT PRIMARY KEY, size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, reason TEXT NOT NULL
) WITHOUT ROWID;
"""
_POSTGRESQL = """
CREATE SCHEMA "{schema}";
SET search_path TO "{schema}", public;
CREATE TABLE about (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE vectors (
    digest text COLLATE "C" PRIMARY KEY, place bigint GENERATED ALWAYS AS IDENTITY, embedding vector(8) NOT NULL
);
CREATE TABLE entries (
    key text COLLATE "C" PRIMARY KEY, digest text COLLATE "C" NOT NULL, size bigint NOT NULL, modified_ns bigint NOT NULL,
    width integer, height integer, taken text COLLATE "C", captions text COLLATE "C" NOT NULL
);
CREATE INDEX entries_by_digest ON entries (digest);
CREATE TABLE broken (
    key text COLLATE "C" PRIMARY KEY, size bigint NOT NULL, modified_ns bigint NOT NULL, reason text NOT NULL
);
"""
_ABOUT = [("format", "1"), ("dim", str(DIM)), ("model", "m"), ("bundle", "b")]
_BROKEN = ("/photos/bad.jpg", 5, 7, "is not a picture")
_NUM = 10


def _rows() -> list[tuple[object, ...]]:
    """Pictures 0 to 9, of which the even ones have a caption."""
    return [
        (f"/photos/{i}.jpg", f"d{i}", i, i * 10**9, 100 * i, None, None, json.dumps([] if i % 2 else [f"caption {i}"]))
        for i in range(_NUM)
    ]


def _make_folder(folder: Path) -> None:
    folder.mkdir()
    vectors = unit(_NUM)
    codes = encode(vectors)
    (folder / "vectors-0.f32").write_bytes(vectors.astype("<f4").tobytes())
    (folder / "codes-0.i8").write_bytes(codes.integers.tobytes())
    (folder / "codes-0.f32").write_bytes(np.stack([codes.scale, codes.error], axis=1).astype("<f4").tobytes())
    with sqlite3.connect(folder / "index.db") as database:
        database.executescript(_SQLITE)
        database.executemany("INSERT INTO about VALUES (?, ?)", [*_ABOUT, ("kind", "float32"), ("file", "0")])
        database.executemany("INSERT INTO vectors VALUES (?, ?)", [(f"d{i}", i) for i in range(_NUM)])
        database.executemany(f"INSERT INTO entries VALUES ({', '.join('?' * 8)})", _rows())
        database.execute("INSERT INTO broken VALUES (?, ?, ?, ?)", _BROKEN)
    database.close()


def _make_schema(address: str) -> None:
    parsed = parse_address(address)
    with psycopg.connect(parsed.database) as connection, connection.cursor() as cursor:
        cursor.execute(_POSTGRESQL.replace("{schema}", parsed.schema).encode())
        cursor.executemany("INSERT INTO about VALUES (%s, %s)", _ABOUT)
        rows = [(f"d{i}", json.dumps(vector.tolist())) for i, vector in enumerate(unit(_NUM))]
        cursor.executemany("INSERT INTO vectors (digest, embedding) VALUES (%s, %s::vector)", rows)
        cursor.executemany(f"INSERT INTO entries VALUES ({', '.join(['%s'] * 8)})".encode(), _rows())
        cursor.execute("INSERT INTO broken VALUES (%s, %s, %s, %s)", _BROKEN)


@pytest.fixture
def old(place: str) -> str:
    """The place of an index of format 1."""
    if is_address(place):
        _make_schema(place)
    else:
        _make_folder(Path(place))
    return place


def _format_of(place: str) -> str:
    if is_address(place):
        parsed = parse_address(place)
        with psycopg.connect(parsed.database) as connection:
            sql = f"SELECT value FROM \"{parsed.schema}\".about WHERE name = 'format'"
            (found,) = connection.execute(sql.encode()).fetchone() or ("",)
            return str(found)
    with sqlite3.connect(Path(place) / "index.db") as database:
        (found,) = database.execute("SELECT value FROM about WHERE name = 'format'").fetchone()
    database.close()
    return str(found)


def _check_answers(index: Index) -> None:
    assert [found.key for found in index.entries()] == [f"/photos/{i}.jpg" for i in range(_NUM)]
    assert index.entries(parse_filter("caption like '%caption 4%'"))[0].captions == ("caption 4",)
    assert [answer[0].entry.digest for answer in index.search(unit(_NUM), top=1)] == [f"d{i}" for i in range(_NUM)]
    assert [found.width for found in index.with_digest("d3")] == [300]
    assert index.stamps()["/photos/bad.jpg"] == FileStat(size=5, modified_ns=7)
    assert index.verify() == []


def test_it_is_read_as_it_is(old: str) -> None:
    with open_index(old) as index:
        _check_answers(index)
        assert (index.sidecars(), index.targets(), index.models) == ({}, {}, ("m",))
        if not is_address(old):
            (remark,) = index.remarks()
            assert "format 1, which has no checksums" in remark
    assert _format_of(old) == "1"


_CHANGES: dict[str, Callable[[Index], object]] = {
    "writing": lambda index: None,
    "add": lambda index: add(index, [entry(30, digest="d3")], {}),
    "remove": lambda index: index.remove(["/nowhere.jpg"]),
    "compact": compact,
    "build": lambda index: build(index, None),
    "rename_model": lambda index: index.rename_model(["new", "m"]),
}


@pytest.mark.parametrize("change", list(_CHANGES))
def test_the_first_change_upgrades_it(old: str, change: str) -> None:
    with open_index(old) as reader, open_index(old) as index:
        _check_answers(reader)
        if change == "writing":
            with index.writing():
                pass
        else:
            _CHANGES[change](index)
        assert _format_of(old) == "3"
        if change == "add":
            index.remove(["/photos/30.jpg"])
        with open_index(old) as again:
            for opened in (index, reader, again):
                _check_answers(opened)
                assert opened.remarks() == []
        unknown = {f"/photos/{i}.jpg": FileStat(size=-1, modified_ns=0) for i in range(0, _NUM, 2)}
        assert index.sidecars() == unknown


def test_an_upgraded_index_has_checksums(tmp_path: Path) -> None:
    _make_folder(tmp_path / "index")
    with LocalIndex(tmp_path / "index") as index:
        add(index, [entry(20)], {"d20": unit(1, seed=5)[0]})
        assert (index.verify(), index.remarks()) == ([], [])
        for name in ("vectors-0.f32", "codes-0.i8", "codes-0.f32"):
            path = index.folder / name
            content = path.read_bytes()
            path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
            assert index.verify()[0].startswith(f"{name} is damaged in rows 0 to 9")
            path.write_bytes(content)


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make_folder(tmp_path / "index")
    with LocalIndex(tmp_path / "index") as index:
        with monkeypatch.context() as patch:
            patch.setattr("diptych.index.upgrade.MARK_CAPTIONS", "UPDATE nothing SET x = 1")
            with pytest.raises(Exception, match="it is as it was"), index.writing():
                pass
        _check_answers(index)
        assert _format_of(index.place) == "1"
        with index.writing():
            _check_answers(index)
        assert _format_of(index.place) == "3"


def _downgrade(place: str) -> None:
    """Make an index of format 2 of one of format 3, as the earlier version wrote it."""
    if is_address(place):
        parsed = parse_address(place)
        with psycopg.connect(parsed.database) as connection:
            connection.execute(f'SET search_path TO "{parsed.schema}", public'.encode())
            connection.execute("ALTER TABLE entries DROP COLUMN phash")
            connection.execute("UPDATE about SET value = '2' WHERE name = 'format'")
        return
    columns = "key, digest, size, modified_ns, width, height, taken, captions, sidecar_size, sidecar_ns, target"  # Of format 2.
    with sqlite3.connect(Path(place) / "index.db") as database:
        database.create_function("hash_row", -1, hash_row)
        database.execute("ALTER TABLE entries DROP COLUMN phash")
        database.execute(f"UPDATE entries SET row_hash = hash_row({columns})")
        database.execute("UPDATE about SET value = '2', row_hash = hash_row(name, '2') WHERE name = 'format'")
    database.close()


@pytest.fixture
def second(place: str) -> str:
    """The place of an index of format 2."""
    with create_index(place, dim=DIM, model="m", bundle="b") as index:
        add_ten(index)
        add(index, [entry(20, digest="d3", sidecar=FileStat(size=1, modified_ns=2), target="/t.jpg")], {})
    _downgrade(place)
    return place


def _check_second(index: Index) -> None:
    assert index.verify() == []
    assert [answer[0].entry.digest for answer in index.search(unit(10), top=1)] == [f"d{i}" for i in range(10)]
    assert (index.sidecars(), index.targets()) == (
        {"/photos/20.jpg": FileStat(size=1, modified_ns=2)},
        {"/photos/20.jpg": "/t.jpg"},
    )
    assert {found.phash for found in index.entries()} == {None}
    (group,) = index.duplicates(1.0)
    assert [picture.key for picture in group.pictures] == ["/photos/20.jpg", "/photos/3.jpg"]


def test_format_2_is_read_as_it_is_and_upgraded(second: str) -> None:
    with open_index(second) as reader, open_index(second) as index:
        for opened in (reader, index):
            _check_second(opened)
            assert opened.duplicates(1.0, phashes={"d1": 5}) == opened.duplicates(1.0)
        assert _format_of(second) == "2"
        with index.writing():
            pass
        assert _format_of(second) == "3"
        with open_index(second) as again:
            for opened in (reader, index, again):
                _check_second(opened)
        index.set_phashes({"d3": 2**64 - 1})
        assert [found.phash for found in reader.with_digest("d3")] == [2**64 - 1] * 2
        assert index.verify() == []


def test_an_upgrade_does_not_hide_damage(tmp_path: Path) -> None:
    with LocalIndex(_second_folder(tmp_path / "index")) as index:
        with sqlite3.connect(index.folder / "index.db") as database:
            database.execute("UPDATE entries SET width = 7 WHERE key = '/photos/5.jpg'")
        database.close()
        (before,) = index.verify()
        with index.writing():
            index.set_phashes({f"d{i}": i for i in range(10)})
        assert index.verify() == [before]
        assert "1 rows of the table entries have changed" in before
    assert _format_of(str(tmp_path / "index")) == "3"


def _second_folder(folder: Path) -> Path:
    with create_index(folder, dim=DIM, model="m", bundle="b") as index:
        add_ten(index)
    _downgrade(str(folder))
    return folder


@pytest.fixture
def old_schema(database: str) -> str:
    """An index of format 1 in a database."""
    address = f"{database}?index=i{uuid4().hex}"
    _make_schema(address)
    return address


def test_two_connections_upgrade_it_once(old_schema: str) -> None:
    with open_index(old_schema) as one, open_index(old_schema) as other:
        for index, number in ((one, 20), (other, 21)):
            add(
                index, [entry(number, sidecar=FileStat(size=1, modified_ns=2))], {f"d{number}": unit(1, seed=number)[0]}
            )
        assert one.sidecars()["/photos/21.jpg"] == FileStat(size=1, modified_ns=2)
