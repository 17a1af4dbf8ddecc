"""An index in PostgreSQL: additions, searches and duplicates. `postgres_store.py` describes its tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.deprecation import renamed_parameter
from diptych.core.errors import ConfigError, IndexingError
from diptych.core.lists import check_list
from diptych.index import postgres_hnsw
from diptych.index.approximate import AnnKind
from diptych.index.dialects import POSTGRESQL, where
from diptych.index.entry import Entry, FileStat, SearchHit
from diptych.index.filters import Filter
from diptych.index.groups import DuplicateGroup, duplicate_groups
from diptych.index.hnsw import Hnsw
from diptych.index.postgres_pool import Connection
from diptych.index.postgres_search import Request, Row, approximate, exact, passes_often, set_effort
from diptych.index.postgres_store import PostgresStore
from diptych.index.tables import (
    COLUMNS,
    to_entry,
    to_row,
    to_signed,
    to_unsigned,
)

_FETCH = 4096
"""Number of rows that are fetched at a time."""


class PostgresIndex(PostgresStore):
    """An `Index` in a database."""

    def __enter__(self) -> "PostgresIndex":
        return self

    def add(
        self,
        entries: Sequence[Entry],
        vectors: Mapping[str, Float32[ndarray, " E"]],
        *,
        broken: Sequence[tuple[str, FileStat, str]] = (),
        gone: Sequence[str] = (),
    ) -> None:
        """Add or replace entries (`Index.add`), in one transaction."""
        self._check_vectors(vectors)
        with self._changing() as cursor:
            digests = {entry.digest for entry in entries} - set(vectors)
            stored = cursor.execute("SELECT digest FROM vectors WHERE digest = ANY(%s)", (list(digests),)).fetchall()
            missing = digests - {digest for (digest,) in stored}
            for entry in entries:
                if entry.digest in missing:
                    raise IndexingError(f"{entry.key}: has no vector")
            with cursor.copy("COPY vectors (digest, embedding) FROM STDIN WITH (FORMAT BINARY)") as copy:
                copy.set_types(["text", "vector"])
                for row in vectors.items():
                    copy.write_row(row)
            _delete_keys(cursor, [*gone, *(entry.key for entry in entries), *(key for key, _, _ in broken)])
            placeholders = ", ".join(["%s"] * (COLUMNS.count(",") + 1))
            cursor.executemany(
                f"INSERT INTO entries ({COLUMNS}) VALUES ({placeholders})".encode(), map(to_row, entries)
            )
            # PostgreSQL texts cannot contain NUL. Paths have none, and captions are stored as JSON; reasons may have some.
            rows = [(key, stamp.size, stamp.modified_ns, reason.replace("\0", "")) for key, stamp, reason in broken]
            cursor.executemany("INSERT INTO broken VALUES (%s, %s, %s, %s)", rows)

    def repair(self) -> None:
        """Remove vectors that do not have unit length, if `verify` found some. `lost` lists the entries to add again."""
        if not self._has_recorded_damage():
            return
        with self._changing() as cursor:
            cursor.execute(
                "DELETE FROM vectors WHERE vector_dims(embedding) <> %s OR NOT abs(vector_norm(embedding) - 1) < 1e-3",
                (self.dim,),
            )
        self._set_about(damaged=None)

    def remove(self, keys: Iterable[str]) -> int:
        """Remove entries, and return their number. Their vectors stay until `compact`."""
        check_list(keys, "keys")
        with self._changing() as cursor:
            return _delete_keys(cursor, list(keys))

    def compact(self, *, least_share: float = 0.0) -> int:
        """Remove the vectors that no entry has, and return their number. `least_share` has no effect in a database."""
        with self._changing() as cursor:
            cursor.execute(
                "DELETE FROM vectors WHERE NOT EXISTS (SELECT FROM entries WHERE entries.digest = vectors.digest)"
            )
            return cursor.rowcount

    @renamed_parameter("chosen", "selected")
    def search(
        self, queries: Float32[ndarray, "Q E"], *, top: int, skip: int = 0, selected: Filter | None = None
    ) -> list[list[SearchHit]]:
        """The entries nearest to each query (`Index.search`), found exactly or with the HNSW index."""
        request = Request(columns=self._columns(), condition=where(selected, POSTGRESQL), top=top, skip=skip)

        def read(connection: Connection) -> list[list[Row]]:
            with connection.transaction():  # Reading `about` locks it, so that nobody drops the tables meanwhile.
                hnsw = Hnsw.from_about(self._check_model(connection))
                if hnsw is None or top <= skip or not passes_often(connection, request.condition, hnsw):
                    return [exact(connection, query, request) for query in queries]
                set_effort(connection, hnsw.ef_search, hnsw.max_scan_tuples)
                return [approximate(connection, query, request, ef_search=hnsw.ef_search) for query in queries]

        answers = self._read(read)
        return [[SearchHit(entry=to_entry(row), score=score) for score, *row in answer] for answer in answers]

    def set_phashes(self, phashes: Mapping[str, int]) -> None:
        """Store perceptual hashes by digest."""
        rows = [(to_signed(phash), digest) for digest, phash in phashes.items()]
        with self._changing() as cursor:
            cursor.executemany("UPDATE entries SET phash = %s WHERE digest = %s", rows)

    def duplicates(self, threshold: float, *, phashes: Mapping[str, int] | None = None) -> list[DuplicateGroup]:
        """Groups of equal and of similar pictures (`Index.duplicates`)."""
        column = "NULL::bigint" if self._current_format() < 3 else "max(phash)"
        sql = f"""
            SELECT array_agg(key ORDER BY key), vectors.digest, {column}, embedding FROM entries JOIN vectors USING (digest)
            GROUP BY vectors.digest ORDER BY place
        """

        def read(connection: Connection) -> list[tuple[list[str], str, int | None, Float32[ndarray, " E"]]]:
            with connection.transaction(), connection.cursor("duplicates", binary=True) as cursor:
                cursor.itersize = _FETCH
                return list(cursor.execute(sql.encode()))

        rows = self._read(read)
        if not rows:
            return []
        hashes = [(phashes or {}).get(digest) if phash is None else to_unsigned(phash) for _, digest, phash, _ in rows]
        vectors = np.stack([vector for *_, vector in rows])
        return duplicate_groups([keys for keys, *_ in rows], hashes, vectors, threshold)

    def vectors(self, digests: Sequence[str]) -> dict[str, Float32[ndarray, " E"]]:
        """The vectors of some contents, by digest (`Index.vectors`)."""
        check_list(digests, "digests")
        sql = "SELECT digest, embedding FROM vectors WHERE digest = ANY(%s)"

        def read(connection: Connection) -> dict[str, Float32[ndarray, " E"]]:
            with connection.cursor(binary=True) as cursor:
                return dict(cursor.execute(sql, (list(digests),)).fetchall())

        found = self._read(read)
        for digest in digests:
            if digest not in found:
                raise IndexingError(f"{self.place}: has no vector of {digest}")
        return found

    def build(self, kind: AnnKind | None, queries: Float32[ndarray, "Q E"] | None = None) -> Hnsw | None:
        """Build pgvector's HNSW index if `kind` is "hnsw"; drop it if `kind` is None.

        If `kind` is None, digests that earlier versions stored outside the rows of their vectors are also moved into these
        rows, where the exact search reads them faster. Searches are exact until the HNSW index is built, and stay exact if it
        is rejected.
        """
        if kind not in {None, "hnsw"}:
            raise ConfigError(f"{self.place}: a database has no {kind}; use --approximate, which builds HNSW")
        with self._changing() as cursor:
            if kind is not None:
                postgres_hnsw.check(cursor.connection, self.place, dim=self.dim)
            postgres_hnsw.drop(cursor.connection, self._schema)
            _set_hnsw(cursor, None)
            _keep_digests_inline(cursor)
        if kind is None:
            return None
        with self._changing() as cursor:
            columns = self._columns()
            built = postgres_hnsw.build(cursor.connection, self.place, dim=self.dim, columns=columns, queries=queries)
            _set_hnsw(cursor, built)
        return built

    def built(self) -> Hnsw | None:
        """The description of the HNSW index with its measured recall; None if there is none."""
        hnsw = Hnsw.from_about(self._about())
        return None if hnsw is None else hnsw.at(self._num_vectors())


def _set_hnsw(cursor: "psycopg.Cursor[Any]", hnsw: Hnsw | None) -> None:
    cursor.execute("DELETE FROM about WHERE name = 'hnsw'")
    if hnsw is not None:
        cursor.execute("INSERT INTO about VALUES ('hnsw', %s)", (hnsw.to_row(),))


def _keep_digests_inline(cursor: "psycopg.Cursor[Any]") -> None:
    """Rewrite the table `vectors` if it may store digests outside its rows, each of which costs the exact search a lookup."""
    sql = "SELECT attstorage <> 'p' FROM pg_attribute WHERE attrelid = 'vectors'::regclass AND attname = 'digest'"
    if cursor.execute(sql).fetchone() == (True,):
        cursor.execute(
            """
            ALTER TABLE vectors ALTER COLUMN digest TYPE text COLLATE "C" USING digest || '',
            ALTER COLUMN digest SET STORAGE PLAIN
            """
        )


def _delete_keys(cursor: "psycopg.Cursor[Any]", keys: list[str]) -> int:
    """Remove the entries and the unreadable pictures with these keys, and return the number of entries."""
    cursor.execute("DELETE FROM broken WHERE key = ANY(%s)", (keys,))
    return cursor.execute("DELETE FROM entries WHERE key = ANY(%s)", (keys,)).rowcount
