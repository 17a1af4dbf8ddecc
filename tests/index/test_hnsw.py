"""pgvector's HNSW index: recall, filters, fallbacks to the exact search, and what is refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from diptych.cli.main import main
from diptych.core.errors import ConfigError, DiptychWarning
from diptych.index.address import parse_address
from diptych.index.entry import SearchHit
from diptych.index.filters import parse_filter
from diptych.index.hnsw import Hnsw, choose_ef_search
from diptych.index.open_index import create_index, open_index
from diptych.index.postgres import PostgresIndex
from diptych.index.protocol import Index
from tests.index.pictures import DIM, add, add_ten, build, entry, unit

_NUM = 6_000
_MEASURED = Hnsw(num=1, ef_search=1, recall=1, num_pictures=100, exact_ms=100, approximate_ms=1)


@pytest.fixture
def raw(database: str) -> Iterator["psycopg.Connection"]:
    """A connection of its own to the database."""
    with psycopg.connect(database, autocommit=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def large(database: str) -> Iterator[Index]:
    """So many pictures that the exact search is the slower one. One in fifty is wide, and the left half is high."""
    address = f"{database}?index=i{uuid4().hex}"
    vectors = unit(_NUM)
    with create_index(address, dim=DIM, model="m", bundle="b") as made:
        add(made, [], {f"d{number}": vector for number, vector in enumerate(vectors)})
        with psycopg.connect(database, autocommit=True) as opened:
            opened.execute(f'SET search_path TO "{parse_address(address).schema}", public'.encode())
            opened.execute(
                """
                INSERT INTO entries
                SELECT '/photos/' || substr(digest, 2) || '.jpg', digest, 1, 1,
                CASE substr(digest, 2)::int % 50 WHEN 0 THEN 900 END,
                CASE WHEN embedding <#> '[1,0,0,0,0,0,0,0]' > 0 THEN 900 END, NULL, '[]', NULL, NULL, NULL, NULL
                FROM vectors
                """
            )
        with made.writing():
            made.build("hnsw", unit(30, seed=1))
        yield made


@pytest.fixture
def index(database: str) -> Iterator[Index]:
    """Ten pictures."""
    with create_index(f"{database}?index=i{uuid4().hex}", dim=DIM, model="m", bundle="b") as made:
        add_ten(made)
        yield made


def _keys(hits: list[SearchHit]) -> list[str]:
    return [hit.entry.key for hit in hits]


def _brute_force(query: NDArray[np.float32], among: NDArray[np.bool_] | None = None) -> list[str]:
    """All keys, the nearest first."""
    scores = unit(_NUM) @ query
    rows = np.argsort(-scores, kind="stable")
    return [f"/photos/{row}.jpg" for row in rows if among is None or among[row]]


def test_nearly_all_are_found_and_ranked_by_the_exact_cosines(large: Index) -> None:
    built = large.built()
    assert isinstance(built, Hnsw)
    assert (built.num, built.num_pictures, built.num_texts, built.num_now) == (_NUM, 100, 30, _NUM)
    assert built.lowest_recall >= 0.98
    assert str(built).startswith("HNSW on halfvec, ef_search 128, recall at 10 ")
    assert " on 100 pictures and " in str(built)
    assert "on 30 texts" in str(built)
    queries, vectors = unit(20, seed=2), unit(_NUM)
    num_found = 0
    for query, hits in zip(queries, large.search(queries, top=10), strict=True):
        scores = [float(vectors[int(hit.entry.digest[1:])] @ query) for hit in hits]
        assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-6)
        assert scores == sorted(scores, reverse=True)
        num_found += len({*_keys(hits)} & {*_brute_force(query)[:10]})
    assert num_found >= 0.95 * 200


def test_a_search_reads_the_graph_and_not_the_table(large: Index) -> None:
    def reads() -> tuple[int, int]:
        """Scans of the HNSW index, and rows that were read without an index."""
        assert isinstance(large, PostgresIndex)
        large._one("SELECT pg_stat_force_next_flush()")
        large._one("SELECT pg_stat_clear_snapshot()")
        sql = "SELECT (SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelid = 'vectors_hnsw'::regclass), seq_tup_read"
        return large._all(f"{sql} FROM pg_stat_user_tables WHERE relid = 'vectors'::regclass")[0]

    scans, rows = reads()
    large.search(unit(3, seed=6), top=100)
    assert reads() == (scans + 3, rows)
    large.search(unit(3, seed=6), top=101)
    assert reads() == (scans + 6, rows + 3 * _NUM)


def test_a_smaller_request_returns_the_first_hits_of_a_larger_one(large: Index) -> None:
    query = unit(1, seed=3)
    hits = large.search(query, top=300)[0]
    assert len({*_keys(hits)}) == 300
    for top in (0, 1, 99, 100, 101, 250):
        assert large.search(query, top=top)[0] == hits[:top]
    for skip, top in ((0, 20), (20, 40), (90, 110), (100, 130), (240, 250), (7, 7)):
        assert large.search(query, top=top, skip=skip)[0] == hits[skip:top]
    assert {*_keys(hits)} >= {*_brute_force(query[0])[:290]}  # Those after the first 100 are the exact search's.


@pytest.mark.parametrize(
    "where", ["width = 900", "height = 900", "width = 900 and height = 900", "path like '%777.jpg'"]
)
def test_a_filter_finds_as_many_as_the_exact_search(large: Index, where: str) -> None:
    query = unit(1, seed=4)
    passes = {entry.key for entry in large.entries(parse_filter(where))}
    expected = [key for key in _brute_force(query[0]) if key in passes]
    hits = large.search(query, top=50, selected=parse_filter(where))[0]
    assert len(hits) == min(50, len(expected))
    assert len({*_keys(hits)} & {*expected[:50]}) >= 0.9 * len(hits)
    assert large.search(query, top=7, selected=parse_filter(where))[0] == hits[:7]


def test_far_pictures_are_found_exactly(large: Index) -> None:
    """A scan that starts on the right stops before it comes to the pictures on the left."""
    query = np.eye(1, DIM, dtype=np.float32)
    passes = {entry.key for entry in large.entries(parse_filter("height = 900"))}
    assert 2700 < len(passes) < 3300
    hits = large.search(query, top=60, selected=parse_filter("height = 900"))[0]
    assert _keys(hits) == [key for key in _brute_force(query[0]) if key in passes][:60]


def test_of_many_equal_vectors_the_first_that_came_are_the_first(large: Index) -> None:
    same = unit(1, seed=5)[0]
    keys = [f"/same/{number}.jpg" for number in range(300, 0, -1)]
    add(large, [entry(0, key=key, digest=key) for key in keys], dict.fromkeys(keys, same))
    try:
        for top in (5, 200, 300):
            assert _keys(large.search(same[None], top=top)[0]) == keys[:top]
    finally:
        large.remove(keys)
    assert not {*keys} & {*_keys(large.search(same[None], top=20)[0])}  # Their vectors are still in the graph.
    with large.writing():
        assert large.compact() == 300


def test_copies_of_a_picture_stay_together(large: Index) -> None:
    """The scan of the graph stops among the copies of a picture, which half precision may order before others."""
    queries = unit(8, seed=12)
    near = np.repeat(queries, 40, axis=0) + 1e-4 * unit(320, seed=13)
    vectors = {f"n{row}": (vector / np.linalg.norm(vector)).astype(np.float32) for row, vector in enumerate(near)}
    copies = [entry(1, key=f"/near/{row}-{copy}.jpg", digest=f"n{row}") for row in range(320) for copy in range(5)]
    add(large, copies, vectors)
    try:
        for found in large.search(queries, top=100):
            whole = [hit.entry.digest for hit in found if hit.entry.digest != found[-1].entry.digest]
            assert {whole.count(digest) for digest in whole} == {5}
    finally:
        large.remove([one.key for one in copies])


def test_the_commands(large: Index, index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    for place, says in ((large.place, "HNSW on halfvec, ef_search 128, recall at 10 "), (index.place, "exact")):
        assert main(["index", "stats", place, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["search"].startswith(says)
    assert main(["index", "build", index.place]) == 0
    assert "is searched exactly" in capsys.readouterr().out


def test_exact_again(large: Index, raw: "psycopg.Connection") -> None:
    schema = parse_address(large.place).schema
    command = "SELECT indexdef FROM pg_indexes WHERE schemaname = %s AND indexname = 'vectors_hnsw'"
    ((definition,),) = raw.execute(command, (schema,)).fetchall()
    assert "halfvec(8)" in definition
    assert large.verify() == []
    raw.execute(f'DROP INDEX "{schema}".vectors_hnsw'.encode())
    (fault,) = large.verify()
    assert fault.startswith("the HNSW index is missing, which makes searches slow; build it again: ")
    assert len(large.search(unit(1), top=5)[0]) == 5
    assert (build(large, None), large.built(), large.verify()) == (None, None, [])


def test_a_small_index_stays_exact(index: Index, raw: "psycopg.Connection") -> None:
    with pytest.raises(
        ConfigError, match=r"stays searched exactly, which takes \d+\.\d ms per query; approximate .* \d+\.\d"
    ):
        build(index, "hnsw")
    assert index.built() is None
    assert (
        raw.execute("SELECT FROM pg_indexes WHERE schemaname = %s", (parse_address(index.place).schema,)).rowcount == 5
    )
    assert len(index.search(unit(1), top=99)[0]) == 10
    with pytest.raises(ConfigError, match="a database has no signs; use --approximate"):
        build(index, "signs")


def test_an_old_pgvector_is_refused(index: Index, raw: "psycopg.Connection") -> None:
    raw.execute("UPDATE pg_extension SET extversion = '0.8.2' WHERE extname = 'vector'")
    try:
        with pytest.raises(
            ConfigError, match=r"has pgvector 0\.8\.2, .* 0\.8\.3 or newer; .*: ALTER EXTENSION vector UPDATE$"
        ):
            build(index, "hnsw")
    finally:
        raw.execute("ALTER EXTENSION vector UPDATE")
    with pytest.raises(ConfigError, match="stays searched exactly"):
        build(index, "hnsw")


def test_what_cannot_be_built(database: str) -> None:
    for dim, says in ((4001, "has vectors of 4,001 numbers; HNSW on halfvec takes at most 4,000"), (8, "is empty")):
        made = create_index(f"{database}?index=i{uuid4().hex}", dim=dim, model="m", bundle="b")
        with made, pytest.raises(ConfigError, match=says):
            build(made, "hnsw")


def test_a_build_that_does_not_fit_into_memory_warns(database: str) -> None:
    address = f"{database}?index=i{uuid4().hex}&options=-c%20maintenance_work_mem%3D64kB"
    with create_index(address, dim=DIM, model="m", bundle="b") as made:
        add(made, [entry(0)], {f"d{number}": vector for number, vector in enumerate(unit(300))})
        with pytest.warns(DiptychWarning, match="did not fit into maintenance_work_mem"), suppress(ConfigError):
            build(made, "hnsw")


def test_growth_is_told(index: Index) -> None:
    address = index.place
    with psycopg.connect(address.partition("?")[0], autocommit=True) as opened:
        opened.execute(
            f"INSERT INTO \"{parse_address(address).schema}\".about VALUES ('hnsw', %s)".encode(),
            (json.dumps({**json.loads(replace(_MEASURED, num=4).to_row()), "of_a_later_version": 1}),),
        )
    assert str(index.built()).endswith("; measured with 4 vectors, now 10: build it again")
    with open_index(address) as again:  # The structure finds too few, so the exact search runs.
        assert len(again.search(unit(1), top=99)[0]) == 10


def _measuring(recalls: dict[int, float], exact_ms: float = 1e9) -> Callable[[int], Hnsw]:
    return lambda ef: replace(_MEASURED, ef_search=ef, recall=recalls[ef], exact_ms=exact_ms, approximate_ms=ef)


def test_ef_search_is_doubled_until_the_recall_is_reached() -> None:
    recalls = {128: 0.9, 256: 0.97, 512: 0.985, 1000: 0.99}
    assert choose_ef_search(_measuring(recalls)).ef_search == 512
    assert choose_ef_search(_measuring({**recalls, 512: 0.97, 1000: 0.975})).ef_search == 1000
    assert choose_ef_search(_measuring(recalls, exact_ms=200)).ef_search == 256
    texts = replace(_MEASURED, recall=0.99, text_recall=0.7)
    assert choose_ef_search(lambda ef: replace(texts, ef_search=ef)).ef_search == 1000
