"""Indexes of format 1: read as they are, upgraded by the first change, never embedded again."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import psycopg
import pytest

from diptych.index.address import is_address, parse_address
from diptych.index.choice import open_index
from diptych.index.entry import Stamp
from diptych.index.exact import encode
from diptych.index.filters import parse_filter
from diptych.index.local import LocalIndex
from diptych.index.protocol import Index
from tests.index.pictures import DIM, entry, unit

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
    assert index.stamps()["/photos/bad.jpg"] == Stamp(size=5, modified_ns=7)
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
    "add": lambda index: index.add([entry(30, digest="d3")], {}),
    "remove": lambda index: index.remove(["/nowhere.jpg"]),
    "compact": lambda index: index.compact(),
    "build": lambda index: index.build(None),
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
        upgraded = is_address(old) and change == "build"  # Nothing is written then.
        assert _format_of(old) == ("1" if upgraded else "2")
        if change == "add":
            index.remove(["/photos/30.jpg"])
        with open_index(old) as again:
            for opened in (index, reader, again):
                _check_answers(opened)
                assert opened.remarks() == [] or upgraded
        unknown = {f"/photos/{i}.jpg": Stamp(size=-1, modified_ns=0) for i in range(0, _NUM, 2)}
        assert index.sidecars() == ({} if upgraded else unknown)


def test_an_upgraded_index_has_checksums(tmp_path: Path) -> None:
    _make_folder(tmp_path / "index")
    with LocalIndex(tmp_path / "index") as index:
        with index.writing():
            index.add([entry(20)], {"d20": unit(1, seed=5)[0]})
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
        assert _format_of(index.place) == "2"


@pytest.fixture
def old_schema(database: str) -> str:
    """An index of format 1 in a database."""
    address = f"{database}?index=i{uuid4().hex}"
    _make_schema(address)
    return address


def test_two_connections_upgrade_it_once(old_schema: str) -> None:
    with open_index(old_schema) as one, open_index(old_schema) as other:
        for index, number in ((one, 20), (other, 21)):
            index.add([entry(number, sidecar=Stamp(size=1, modified_ns=2))], {f"d{number}": unit(1, seed=number)[0]})
        assert one.sidecars()["/photos/21.jpg"] == Stamp(size=1, modified_ns=2)
