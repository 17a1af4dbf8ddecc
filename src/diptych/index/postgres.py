"""An index in PostgreSQL: additions and searches. `postgres_store.py` describes its tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError, IndexingError
from diptych.core.lists import check_list
from diptych.index.approximate import About, Kind
from diptych.index.dialects import POSTGRESQL, where
from diptych.index.entry import Entry, Found, Stamp
from diptych.index.filters import Filter
from diptych.index.groups import DuplicateGroup, duplicate_groups
from diptych.index.postgres_pool import Connection
from diptych.index.postgres_store import PostgresStore
from diptych.index.tables import (
    COLUMNS,
    to_entry,
    to_row,
    to_signed,
    to_unsigned,
)

_FETCH = 4096


class PostgresIndex(PostgresStore):
    """An `Index` in a database."""

    def __enter__(self) -> "PostgresIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def digest_of(self, key: str) -> str | None:
        """The content of an entry; None if there is no such entry."""
        rows = self._all("SELECT digest FROM entries WHERE key = %s", (key,))
        return str(rows[0][0]) if rows else None

    def with_digest(self, digest: str) -> list[Entry]:
        """The entries of a content, by key."""
        sql = f"SELECT {self._columns()} FROM entries WHERE digest = %s ORDER BY key"
        return [to_entry(row) for row in self._all(sql, (digest,))]

    def has_vector(self, digest: str) -> bool:
        """Whether the content was embedded before."""
        return bool(self._all("SELECT 1 FROM vectors WHERE digest = %s", (digest,)))

    def entries(self, chosen: Filter | None = None) -> list[Entry]:
        """All, or those that a filter lets through, by key."""
        condition = where(chosen, POSTGRESQL)
        sql = f"SELECT {self._columns()} FROM entries{condition.sql} ORDER BY key"
        return [to_entry(row) for row in self._all(sql, condition.values)]

    def add(
        self,
        entries: Sequence[Entry],
        vectors: Mapping[str, Float32[ndarray, " E"]],
        *,
        broken: Sequence[tuple[str, Stamp, str]] = (),
        gone: Sequence[str] = (),
    ) -> None:
        """Take up or replace entries, in one transaction."""
        for digest, vector in vectors.items():
            if vector.shape != (self.dim,):
                raise IndexingError(
                    f"{self.place}: has vectors of {self.dim} numbers; one of {vector.shape} was given ({digest})"
                )
        with self._changing() as cursor:
            digests = {entry.digest for entry in entries} - set(vectors)
            held = cursor.execute("SELECT digest FROM vectors WHERE digest = ANY(%s)", (list(digests),)).fetchall()
            lacking = digests - {digest for (digest,) in held}
            for entry in entries:
                if entry.digest in lacking:
                    raise IndexingError(f"{entry.key}: has no vector")
            with cursor.copy("COPY vectors (digest, embedding) FROM STDIN WITH (FORMAT BINARY)") as copy:
                copy.set_types(["text", "vector"])
                for row in vectors.items():
                    copy.write_row(row)
            _forget(cursor, [*gone, *(entry.key for entry in entries), *(key for key, _, _ in broken)])
            marks = ", ".join(["%s"] * (COLUMNS.count(",") + 1))
            cursor.executemany(f"INSERT INTO entries ({COLUMNS}) VALUES ({marks})".encode(), map(to_row, entries))
            # A name has no NUL, and captions are kept as JSON; a reason may quote anything.
            rows = [(key, stamp.size, stamp.modified_ns, reason.replace("\0", "")) for key, stamp, reason in broken]
            cursor.executemany("INSERT INTO broken VALUES (%s, %s, %s, %s)", rows)

    def repair(self) -> None:
        """Drop vectors that do not have unit length, if `verify` found some. `lost` lists the entries to add again."""
        if not self._has_noted_damage():
            return
        with self._changing() as cursor:
            cursor.execute(
                "DELETE FROM vectors WHERE vector_dims(embedding) <> %s OR NOT abs(vector_norm(embedding) - 1) < 1e-3",
                (self.dim,),
            )
        self._set_about(damaged=None)

    def remove(self, keys: Iterable[str]) -> int:
        """Drop entries; how many there were. Their vectors stay until `compact`."""
        check_list(keys, "keys")
        with self._changing() as cursor:
            return _forget(cursor, list(keys))

    def compact(self) -> int:
        """Drop the vectors that no entry has; how many these were."""
        with self._changing() as cursor:
            cursor.execute(
                "DELETE FROM vectors WHERE NOT EXISTS (SELECT FROM entries WHERE entries.digest = vectors.digest)"
            )
            return cursor.rowcount

    def search(self, queries: Float32[ndarray, "Q E"], *, top: int, chosen: Filter | None = None) -> list[list[Found]]:
        """The entries nearest to each query; the server compares it with all that the filter lets through."""
        condition = where(chosen, POSTGRESQL)
        sql = f"""
            SELECT -(embedding <#> %s), {self._columns()} FROM entries JOIN vectors USING (digest){condition.sql}
            ORDER BY embedding <#> %s, place, key LIMIT %s
        """

        def read(connection: Connection) -> list[list[Any]]:
            with connection.transaction():  # Reading `about` prevents others from dropping the tables until this ends.
                self._check_model(connection)
                values = [(query, *condition.values, query, top) for query in queries]
                return [connection.execute(sql.encode(), some).fetchall() for some in values]

        answers = self._read(read)
        return [[Found(entry=to_entry(row), score=score) for score, *row in answer] for answer in answers]

    def set_phashes(self, phashes: Mapping[str, int]) -> None:
        """Store perceptual hashes by digest."""
        rows = [(to_signed(phash), digest) for digest, phash in phashes.items()]
        with self._changing() as cursor:
            cursor.executemany("UPDATE entries SET phash = %s WHERE digest = %s", rows)

    def duplicates(self, threshold: float, *, phashes: Mapping[str, int] | None = None) -> list[DuplicateGroup]:
        """Groups of equal pictures, and of pictures whose vectors have at least the cosine `threshold`."""
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
        """Of some contents."""
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

    def build(self, kind: Kind | None, queries: Float32[ndarray, "Q E"] | None = None) -> About | None:
        """Nothing for None. The server's own indexes are no help: with a filter they find less than there is."""
        if kind is not None:
            raise ConfigError(f"{self.place}: a database is searched exactly; {kind} is for an index in a folder")
        return None

    def built(self) -> About | None:
        """Nothing: a database is searched exactly."""
        return None


def _forget(cursor: "psycopg.Cursor[Any]", keys: list[str]) -> int:
    """Drop what is known of these pictures; how many entries there were."""
    cursor.execute("DELETE FROM broken WHERE key = ANY(%s)", (keys,))
    return cursor.execute("DELETE FROM entries WHERE key = ANY(%s)", (keys,)).rowcount
