"""Build pgvector's HNSW index, and choose `ef_search`. Shapes: E embedding, Q queries."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import psycopg
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError, DiptychWarning
from diptych.index.dialects import Condition
from diptych.index.hnsw import MAX_SCAN_TUPLES, RECALL_TOP, Hnsw, choose_ef_search
from diptych.index.postgres_pool import Connection
from diptych.index.postgres_search import TOP, Request, Row, approximate, exact, set_effort

_NAME = "vectors_hnsw"
_OLDEST = (0, 8, 3)
"""Minimum version of pgvector. In earlier versions, vacuuming can corrupt an HNSW index; before 0.8.2, a parallel build can
overflow."""
_MAX_DIM = 4000
"""Maximum dimension of an HNSW index on halfvec."""
_SAMPLES = 100
"""Maximum number of picture queries and of text queries."""


class _Sample(NamedTuple):
    """A query of the recall measurement, and the result of the exact search."""

    query: Float32[ndarray, " E"]
    request: Request
    rows: list[Row]
    exact_ms: float


def check(connection: Connection, place: str, *, dim: int) -> None:
    """Check that pgvector can build an HNSW index.

    Raises:
        ConfigError: pgvector is too old, the dimension is too large, or the index is empty.
    """
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    version = "" if row is None else str(row[0])
    if tuple(int(part) for part in version.split(".") if part.isdecimal()) < _OLDEST:
        raise ConfigError(
            f"{place}: has pgvector {version}, and an approximate index needs 0.8.3 or newer; install it on the server, "
            "then run in the database: ALTER EXTENSION vector UPDATE"
        )
    if dim > _MAX_DIM:
        raise ConfigError(f"{place}: has vectors of {dim:,} numbers; HNSW on halfvec takes at most {_MAX_DIM:,}")
    if connection.execute("SELECT FROM entries JOIN vectors USING (digest) LIMIT 1").rowcount == 0:
        raise ConfigError(f"{place}: is empty; add pictures first")


def drop(connection: Connection, schema: str) -> None:
    """Drop the HNSW index of a schema if it exists."""
    connection.execute(f'DROP INDEX IF EXISTS "{schema}".{_NAME}'.encode())


def is_usable(connection: Connection, schema: str) -> bool:
    """Whether a schema has a complete HNSW index."""
    sql = "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid"
    return connection.execute(sql, (f'"{schema}".{_NAME}',)).rowcount == 1


def build(
    connection: Connection, place: str, *, dim: int, columns: str, queries: Float32[ndarray, "Q E"] | None
) -> Hnsw:
    """Build the HNSW index, and increase `ef_search` until the recall at 10 is at least 0.98. Call it within a transaction.

    Args:
        connection: connection to a database without an HNSW index.
        place: address of the index, for messages.
        dim: embedding dimension.
        columns: columns of an entry.
        queries: unit vectors of texts. The recall is measured on at most 100 of them, and on at most 100 pictures.

    Raises:
        ConfigError: the exact search is faster. Roll the transaction back.
    """
    with _warning_of_memory(connection, place):
        connection.execute(
            f"CREATE INDEX {_NAME} ON vectors USING hnsw ((embedding::halfvec({dim})) halfvec_ip_ops)".encode()
        )
    connection.execute("ANALYZE vectors, entries")
    (num,) = connection.execute("SELECT count(*) FROM vectors").fetchone() or (0,)
    pictures = _pictures(connection, columns)
    request = Request(columns=columns, condition=Condition("", ()), top=RECALL_TOP)
    texts = [] if queries is None else [_sample(connection, query, request) for query in queries[:_SAMPLES]]
    exact_ms = median(sample.exact_ms for sample in (*pictures, *texts))

    def measure(ef_search: int) -> Hnsw:
        recall, picture_ms = _measure(connection, pictures, ef_search)
        text_recall, text_ms = _measure(connection, texts, ef_search) if texts else (None, [])
        return Hnsw(
            num=num,
            ef_search=ef_search,
            recall=recall,
            num_pictures=len(pictures),
            text_recall=text_recall,
            num_texts=len(texts),
            exact_ms=exact_ms,
            approximate_ms=median([*picture_ms, *text_ms]),
        )

    built = choose_ef_search(measure)
    if built.approximate_ms >= exact_ms or num <= TOP:
        raise ConfigError(
            f"{place}: stays searched exactly, which takes {exact_ms:.1f} ms per query; approximate search takes "
            f"{built.approximate_ms:.1f} ms, with ef_search {built.ef_search} and a recall of {built.lowest_recall:.3f}"
        )
    return built


@contextmanager
def _warning_of_memory(connection: Connection, place: str) -> Iterator[None]:
    notices = list[str]()

    def collect(notice: psycopg.errors.Diagnostic) -> None:
        notices.append(notice.message_primary or "")

    connection.add_notice_handler(collect)
    try:
        yield
    finally:
        connection.remove_notice_handler(collect)
    if any("maintenance_work_mem" in notice for notice in notices):
        warnings.warn(
            f"{place}: the graph did not fit into maintenance_work_mem, so building took longer; "
            "add options=-c%20maintenance_work_mem%3D4GB to the address",
            DiptychWarning,
            stacklevel=2,
        )


def _pictures(connection: Connection, columns: str) -> list[_Sample]:
    """Vectors of random entries as queries. The results of each query exclude the picture itself and its copies."""
    sql = """
        SELECT digest, embedding FROM vectors
        WHERE digest IN (SELECT digest FROM entries TABLESAMPLE BERNOULLI (%s) REPEATABLE (0)) ORDER BY digest LIMIT %s
    """
    (num,) = connection.execute("SELECT count(*) FROM entries").fetchone() or (0,)
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(sql, (min(100.0, 100 * 2 * _SAMPLES / num), _SAMPLES)).fetchall()
        if not rows:  # Nearly all entries have lost their vectors.
            rows = cursor.execute(sql, (100.0, _SAMPLES)).fetchall()
    others = " WHERE (digest <> %s)"
    return [
        _sample(connection, vector, Request(columns=columns, condition=Condition(others, (digest,)), top=RECALL_TOP))
        for digest, vector in rows
    ]


def _sample(connection: Connection, query: Float32[ndarray, " E"], request: Request) -> _Sample:
    start = time.perf_counter()
    rows = exact(connection, query, request)
    return _Sample(query, request, rows, 1000 * (time.perf_counter() - start))


def _measure(connection: Connection, samples: Sequence[_Sample], ef_search: int) -> tuple[float, list[float]]:
    """The recall, and the time of each query in milliseconds, with a value of `ef_search`."""
    set_effort(connection, ef_search, MAX_SCAN_TUPLES)
    num_found, num_needed, times_ms = 0, 0, list[float]()
    for query, request, rows, _ in samples:
        start = time.perf_counter()
        found = approximate(connection, query, request, ef_search=ef_search)
        times_ms.append(1000 * (time.perf_counter() - start))
        num_needed += len(rows)
        # Any entry whose score is at least that of the last expected one counts.
        num_found += sum(row[0] >= rows[-1][0] for row in found)
    return (num_found / num_needed if num_needed else 1.0), times_ms
