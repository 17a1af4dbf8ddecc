"""An index in PostgreSQL: the same answers as a folder's, and what may happen between it and its server."""

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import ConfigError, IndexingError
from diptych.index.address import parse_address
from diptych.index.create_local import create_local_index
from diptych.index.create_postgres import create_postgres_index
from diptych.index.dialects import SQLITE, to_sql
from diptych.index.entry import FileStat
from diptych.index.filters import NUMBERS, Comparison, Field, Filter, Joined, Not, Sign
from diptych.index.open_index import create_index, index_exists, open_index
from diptych.index.postgres import PostgresIndex
from diptych.index.protocol import Index
from diptych.search.scan import digest_of
from tests.index.pictures import DIM, add, add_ten, build, entry, unit

_NAMES = [
    "a",
    "A",
    "ä",
    "Ä",
    "aa",
    "a%",
    "a_",
    "a\\",
    "\\%",
    "\\",
    "'",
    "ß",
    "SS",
    "İ",
    "é",
    "e\u0301",
    "写",
    "Z",
    "z",
    "~",
]
_PATTERNS = ["A%", "_", "__", "a\\%", "%\\", "\\_", "%\\%%", "ä%", "%Z", "%%", "", "ss", "%写_", "%i%"]
_TIMES = [
    "2024-01-03",
    "2024-01-03 10:00:00",
    "1969-12-31 23:59:59",
    "1970-01-01 00:00:00",
    "2024%",
    "19__-%",
    "%:00",
    "x",
]
_NUMBERS = [-1.0, 0.0, 2.5, 3.0, 7.0, 1e300]
_VALUES: dict[Field, list[str | float]] = {
    "path": [f"/{name}" for name in (*_NAMES, *_PATTERNS)],
    "caption": [*_PATTERNS, *(f"%{name}%" for name in _NAMES), '["a"]'],
    "taken": [*_TIMES],
    "modified": [*_TIMES, "1970-01-01 00:00:01"],
    "size": [*_NUMBERS],
    "width": [*_NUMBERS],
    "height": [*_NUMBERS],
}


@pytest.fixture
def address(database: str) -> str:
    """Of an index that is not there yet."""
    return f"{database}?index=i{uuid4().hex}"


@pytest.fixture
def index(address: str) -> Iterator[PostgresIndex]:
    """Ten pictures."""
    with create_postgres_index(address, dim=DIM, model="m", bundle="b") as made:
        add_ten(made)
        yield made


@pytest.fixture(scope="module")
def twins(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Index, Index]]:
    """A folder and a database with the same pictures, whose names, times and captions are odd and partly missing."""
    entries = [
        entry(
            number,
            key=f"/{name}",
            digest=f"d{number % 15}",
            stamp=FileStat(size=number // 2, modified_ns=(number - 3) * 700_000_000),
            width=None if number % 3 else number,
            height=None,
            taken=[None, "2024-01-03 10:00:00", "2024-01-03", "1999-7-1"][number % 4],
            captions=(name, "写真")[: number % 3],
        )
        for number, name in enumerate(_NAMES)
    ]
    vectors = {f"d{number}": vector for number, vector in enumerate(unit(15))}
    folder = tmp_path_factory.mktemp("twin") / "index"
    with (
        create_local_index(folder, dim=DIM, model="m", bundle="b") as local,
        create_postgres_index(f"{database}?index=twin_{uuid4().hex}", dim=DIM, model="m", bundle="b") as remote,
    ):
        for made in (local, remote):
            add(made, entries, vectors)
        yield local, remote


def _comparisons(field: Field) -> list[Comparison]:
    patterns = ["1%", "_", "%"] if field in NUMBERS else []
    made = [Comparison(field, sign, value) for sign in get_args(Sign) if sign != "like" for value in _VALUES[field]]
    return made + [Comparison(field, "like", str(value)) for value in (*_VALUES[field], *patterns)]


_FILTERS: st.SearchStrategy[Filter] = st.recursive(
    st.sampled_from([comparison for field in get_args(Field) for comparison in _comparisons(field)]),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(Joined, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("field", get_args(Field))
def test_a_comparison_lets_the_same_through(twins: tuple[Index, Index], field: Field) -> None:
    local, remote = twins
    num_told_apart = 0
    for comparison in _comparisons(field):
        found = local.entries(comparison)
        assert found == remote.entries(comparison), comparison
        num_told_apart += 0 < len(found) < len(local)
    assert num_told_apart > 5 or field == "height"  # Of which nothing is known.


@given(_FILTERS)
def test_a_filter_lets_the_same_through(twins: tuple[Index, Index], selected: Filter) -> None:
    local, remote = twins
    assert local.entries(selected) == remote.entries(selected), to_sql(selected, SQLITE)


def test_the_answers_are_those_of_a_folder(twins: tuple[Index, Index]) -> None:
    local, remote = twins
    for top in (1, 7, 99):
        for ours, theirs in zip(remote.search(unit(15), top=top), local.search(unit(15), top=top), strict=True):
            assert [hit.entry for hit in ours] == [hit.entry for hit in theirs]
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-6)
    for threshold in (0.3, 0.6, 0.99):
        assert local.duplicates(threshold) == remote.duplicates(threshold)
    assert local.stamps() == remote.stamps()
    assert local.size() | {"bytes": 0} == remote.size() | {"bytes": 0}


def test_indexes_of_one_database_know_nothing_of_each_other(index: PostgresIndex, database: str) -> None:
    other = f"{database}?index=i{uuid4().hex}"
    assert not index_exists(other)
    with create_index(other, dim=3, model="n", bundle="b") as made, made.writing(), index.writing(wait_s=0.05):
        assert (len(made), len(index)) == (0, 10)


def test_damage_is_named(index: PostgresIndex, address: str, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as raw:
        raw.execute(f'SET search_path TO "{parse_address(address).schema}", public'.encode())
        raw.execute("UPDATE vectors SET embedding = embedding * embedding WHERE digest IN ('d3', 'd4')")
        raw.execute("DELETE FROM vectors WHERE digest = 'd5'")
        first, second = index.verify()
        assert (
            first
            == "2 vectors are not of unit length, the first is number 4; the next index add embeds the pictures again"
        )
        assert second == "1 entries have no vector; the next index add embeds the pictures again"
        with index.writing():
            index.repair()
        assert index.lost() == {f"/photos/{number}.jpg" for number in (3, 4, 5)}
        assert index.verify() == ["3 entries have no vector; the next index add embeds the pictures again"]
        add(index, [], {f"d{number}": unit(10)[number] for number in (3, 4, 5)})
        assert (index.lost(), index.verify()) == (set(), [])
        raw.execute("UPDATE about SET value = '9' WHERE name = 'format'")
        with pytest.raises(IndexingError, match="format 9, and this version reads 1 to 3"):
            open_index(address)


def test_vectors_are_looked_at_only_after_damage_was_found(index: PostgresIndex, address: str, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as raw:
        raw.execute(f'SET search_path TO "{parse_address(address).schema}", public'.encode())
        raw.execute("UPDATE vectors SET embedding = embedding * embedding WHERE digest = 'd3'")
    for found, lost in (([], set[str]()), ([True], {"/photos/3.jpg"})):
        assert [bool(fault) for fault in (index.verify() if found else [])] == found
        with index.writing():
            index.repair()
        assert index.lost() == lost


def test_a_lost_connection_is_one_line_and_lets_go_of_the_lock(
    index: PostgresIndex, address: str, database: str
) -> None:
    schema = re.escape(index.place)
    with psycopg.connect(database, autocommit=True) as raw, index.writing():
        raw.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'diptych%' AND pid IN"
            " (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
        )
        with pytest.raises(IndexingError, match=f"^{schema}: cannot be (read|written) \\([^\n]+"):
            index.add([entry(0)], {})
        with open_index(address) as other, other.writing(wait_s=5):
            assert len(other) == 10
    assert len(index.entries()) == 10
    index.add([entry(20, digest="d3")], {})
    assert index.digest_of("/photos/20.jpg") == "d3"


def test_an_index_that_is_made_again_is_searched_unless_its_model_is_another(
    index: PostgresIndex, address: str, database: str
) -> None:
    def make_again(model: str) -> None:
        with psycopg.connect(database, autocommit=True) as raw:
            raw.execute(f'DROP SCHEMA "{parse_address(address).schema}" CASCADE'.encode())
        create_index(address, dim=DIM, model=model, bundle="b", aliases=["old"]).close()

    query = unit(10)[3:4]
    assert index.search(query, top=1)[0][0].entry.digest == "d3"
    make_again("m")
    assert index.search(query, top=1) == [[]]
    index.add([entry(7)], {"d7": unit(10)[7]})
    assert [hit.entry.digest for hit in index.search(query, top=9)[0]] == ["d7"]
    make_again("n")
    for use in (lambda: index.search(query, top=1), lambda: index.add([entry(7)], {"d7": unit(10)[7]})):
        with pytest.raises(IndexingError, match=r"was replaced by an index of another model, n \(b\); open it again"):
            use()
    with open_index(address) as again:
        assert (again.model, len(again)) == ("n", 0)


def test_an_index_that_is_being_written_is_not_waited_for_by_who_would_create_it(
    index: PostgresIndex, address: str
) -> None:
    """Another process has just created it, and writes for hours."""
    impatient = f"{address}&options=-c%20statement_timeout%3D5000"
    with index.writing(), pytest.raises(IndexingError, match="holds an index already"):
        create_index(impatient, dim=DIM, model="m", bundle="b")


def test_large_vectors_are_kept_beside_their_table(address: str) -> None:
    vectors = np.eye(3, 3000, dtype=np.float32)
    with create_index(address, dim=3000, model="m", bundle="b") as made:
        made.add([entry(number) for number in range(3)], {f"d{number}": vectors[number] for number in range(3)})
        assert made.search(vectors[1:2], top=1)[0][0].entry.key == "/photos/1.jpg"
        assert made.vectors(["d2"])["d2"].tobytes() == vectors[2].tobytes()
        assert (made.verify(), made.remarks()) == ([], [])


@pytest.mark.parametrize("is_old", [False, True])
def test_digests_lie_in_the_rows_of_their_vectors(address: str, database: str, is_old: bool) -> None:
    """PostgreSQL moves columns out of rows of more than 2,032 bytes; each digest elsewhere costs a search a look-up."""
    vectors, digests = np.eye(3, 512, dtype=np.float32), [digest_of(bytes([number])) for number in range(3)]
    with (
        create_index(address, dim=512, model="m", bundle="b") as made,
        psycopg.connect(database, autocommit=True) as raw,
    ):
        raw.execute(f'SET search_path TO "{parse_address(address).schema}", public'.encode())
        if is_old:  # As earlier versions created the table.
            raw.execute("ALTER TABLE vectors ALTER COLUMN digest SET STORAGE EXTENDED")
        add(made, [entry(i, digest=digests[i]) for i in range(3)], dict(zip(digests, vectors, strict=True)))
        (says,) = made.remarks() if is_old else ["index build"]
        assert "index build" in says
        assert (build(made, None), made.remarks()) == (None, [])
        outside = "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'vectors'::regclass AND reltoastrelid <> 0"
        assert raw.execute(outside).fetchall() in ([], [(0,)])
        add(made, [entry(3, digest="d3")], {"d3": -vectors[0]})
        found = made.search(vectors[1:2], top=4)[0]
        assert [hit.entry.key for hit in found] == [f"/photos/{number}.jpg" for number in (1, 0, 2, 3)]
        assert (made.verify(), build(made, None)) == ([], None)


def test_what_a_database_must_be(database: str) -> None:
    server, _, _ = database.rpartition("/")
    latin, plain = f"latin_{uuid4().hex}", f"plain_{uuid4().hex}"
    with psycopg.connect(database, autocommit=True) as raw:
        raw.execute(f"CREATE DATABASE {latin} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0".encode())
        raw.execute(f"CREATE DATABASE {plain}".encode())
        raw.execute("CREATE SCHEMA other CREATE TABLE letters (number int)")
    with psycopg.connect(f"{server}/{latin}") as raw:
        raw.execute("CREATE EXTENSION vector")
    for place, says in {
        f"{server}/{plain}": "its database has no pgvector; .*: CREATE EXTENSION vector$",
        f"{server}/{latin}": "its database has the encoding LATIN1",
        f"{database}?index=other": "the schema other is not empty and holds no index",
        f"{server}/nowhere": 'cannot be reached .*database "nowhere" does not exist',
        "postgresql://ann:secret@127.0.0.1:1/x": r"^postgresql://ann@127.0.0.1:1/x: cannot be reached \([^\n]+\)$",
    }.items():
        with pytest.raises(IndexingError, match=says):
            create_index(place, dim=DIM, model="m", bundle="b")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("postgresql://host/x?index=Photos", "index=Photos is no name"),
        ("postgresql://host/x?index=", "index= is no name"),
        ("postgresql://host/x?index=pg_photos", "index=pg_photos is no name"),
        ('postgresql://host/x?index=a"b', "is no name"),
        (f"postgresql://host/x?index={'a' * 64}", "is no name"),
        ("postgresql://host/x?index=a&index=b", "index=a&index=b is no name"),
        ("postgresql://host/x?colour=red", "is no address"),
        ("postgresql://ann:sec%zzret@host/x", "is no address"),
        ("postgresql://ann:se@cret@host/x", "write @ in the password as %40"),
        ("postgresql://ann:se/cret@host/x", "write @ in the password as %40"),
        ("postgres://host/x?password=sec%zzret", "is no address"),
    ],
)
def test_addresses_that_are_none(address: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        index_exists(address)
    assert "cret" not in str(caught.value)
    assert "sec" not in str(caught.value)


def test_the_name_of_the_index_is_no_part_of_the_database() -> None:
    parsed = parse_address("postgres://ann:secret@host/x?sslmode=require&index=photos&connect_timeout=3")
    assert parsed.database == "postgres://ann:secret@host/x?sslmode=require&connect_timeout=3"
    assert (parsed.schema, parse_address("postgresql://host/x").schema) == ("photos", "diptych")
    assert "secret" not in repr(parsed)


@pytest.mark.parametrize(
    "scheme", ["postgresql+psycopg", "POSTGRESQL", "Postgres", " postgresql", "\tpostgresql+psycopg2"]
)
def test_other_forms_of_an_address_are_the_same_place(
    address: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = f"{scheme}://{address.partition('://')[2].replace('tester@', 'tester:secret@')} "
    with create_index(other, dim=DIM, model="m", bundle="b") as made:
        add_ten(made)
        assert "secret" not in made.place
    assert index_exists(other)
    for place in (other, address):
        with open_index(place) as again:
            assert len(again) == 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "place",
    [
        "mysql://ann:secret@host/x",
        "postgresql:/ann:secret@host/x",
        "postgresql:ann:secret@host/x",
        "postgresql+psycopg:/ann:secret@host/x",
        "jdbc:postgresql://host/x?user=ann&password=secret",
        "'postgresql://ann:secret@host/x'",
        "host=127.0.0.1 user=ann password=secret dbname=x",
        "pq://ann:secret@host/x",
        Path("postgresql://ann:secret@host/x"),
    ],
)
def test_what_may_hold_a_password_is_no_folder(
    place: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (index_exists, open_index, partial(create_index, dim=DIM, model="m", bundle="b")):
        with pytest.raises(ConfigError, match=r"is not shown|write postgresql") as caught:
            call(place)
        assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for call in (index_exists, open_index):
        with pytest.raises(ConfigError, match=re.escape("pip install 'diptych[postgres]'")):
            call("postgresql://host/x")
    assert not index_exists(tmp_path)
