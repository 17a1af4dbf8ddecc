"""An index in PostgreSQL with pgvector: a schema of a database, which several machines reach.

    about     what made the vectors
    vectors   by digest; `place` counts them in the order in which they came
    entries   what is known of each picture
    broken    pictures that could not be read

A change is one transaction. Who writes holds an advisory lock, which the server lets go of when the connection ends.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any

import numpy as np
import psycopg
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import BusyError, ConfigError, IndexingError
from diptych.index.address import Address, parse_address
from diptych.index.approximate import About, Kind
from diptych.index.dialects import POSTGRESQL, where
from diptych.index.entry import Entry, Found, Stamp
from diptych.index.filters import Filter
from diptych.index.groups import groups_of_keys
from diptych.index.pgvector import connect, one_line
from diptych.index.tables import COLUMNS, to_entry, to_row

_FORMAT = 1
_LOOK_AGAIN_S = 0.1
_FETCH = 4096
_TABLES = """
CREATE TABLE about (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE vectors (
    digest text COLLATE "C" PRIMARY KEY, place bigint GENERATED ALWAYS AS IDENTITY, embedding vector({dim}) NOT NULL
);
ALTER TABLE vectors ALTER COLUMN embedding SET STORAGE {storage};
CREATE TABLE entries (
    key text COLLATE "C" PRIMARY KEY, digest text COLLATE "C" NOT NULL, size bigint NOT NULL, modified_ns bigint NOT NULL,
    width integer, height integer, taken text COLLATE "C", captions text COLLATE "C" NOT NULL
);
CREATE INDEX entries_by_digest ON entries (digest);
CREATE TABLE broken (
    key text COLLATE "C" PRIMARY KEY, size bigint NOT NULL, modified_ns bigint NOT NULL, reason text NOT NULL
);
"""
_INLINE_DIM = 1900
"""A row of so many numbers fits into a page, where a search reads it seven times as fast as from beside the table."""


class PostgresIndex:
    """An `Index` in a database."""

    def __init__(self, address: str) -> None:
        """Open what is there.

        Raises:
            IndexingError: there is no index, or its server cannot be reached.
            ConfigError: the address is none.
        """
        parsed = parse_address(address)
        self.place, self._schema = parsed.shown, parsed.schema
        self._database, self._is_writing = connect(parsed), False
        try:
            about = self._about()
        except IndexingError:
            self.close()
            raise
        self.dim, self.model, self.bundle = int(about["dim"]), about["model"], about["bundle"]

    def _about(self) -> dict[str, str]:
        if not self._one("SELECT to_regclass(%s) IS NOT NULL", (f'"{self._schema}".about',)):
            raise IndexingError(
                f"{self.place}: holds no index; make one with: diptych index add '{self.place}' FOLDER --bundle BUNDLE"
            )
        about = dict(self._all("SELECT name, value FROM about"))
        if about.get("format") != str(_FORMAT):
            raise IndexingError(
                f"{self.place}: is an index of format {about.get('format')}, and this version reads {_FORMAT}"
            )
        return about

    def close(self) -> None:
        """Let go of the connection."""
        self._database.close()

    def __enter__(self) -> "PostgresIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM entries"))

    @contextmanager
    def writing(self, *, wait_s: float = 10.0) -> Iterator[None]:
        """Alone among all who write, by a lock of the connection."""
        give_up_at = time.monotonic() + wait_s
        number = _lock_number(self._schema)
        # The server would give the lock again to the connection that has it.
        while self._is_writing or not self._one("SELECT pg_try_advisory_lock(%s)", (number,)):
            if time.monotonic() > give_up_at:
                raise BusyError(f"{self.place}: is being written by {self._holder()}; try again when it is done")
            time.sleep(_LOOK_AGAIN_S)
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False
            with suppress(psycopg.Error):  # A connection that was lost holds nothing.
                self._database.execute("SELECT pg_advisory_unlock(%s)", (number,))

    def _holder(self) -> str:
        sql = """
            SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND datname = current_database()
            AND database = datid AND (classid::bigint << 32) + objid::bigint = %s
        """
        rows = self._all(sql, (_lock_number(self._schema),))
        return rows[0][0].removeprefix("diptych ") if rows and rows[0][0] else "another process"

    def stamps(self) -> dict[str, Stamp]:
        """Of every entry and every picture that could not be read, by key."""
        rows = self._all(
            "SELECT key, size, modified_ns FROM entries UNION ALL SELECT key, size, modified_ns FROM broken"
        )
        return {key: Stamp(size=size, modified_ns=modified) for key, size, modified in rows}

    def digest_of(self, key: str) -> str | None:
        """The content of an entry; None if there is no such entry."""
        rows = self._all("SELECT digest FROM entries WHERE key = %s", (key,))
        return str(rows[0][0]) if rows else None

    def with_digest(self, digest: str) -> list[Entry]:
        """The entries of a content, by key."""
        sql = f"SELECT {COLUMNS} FROM entries WHERE digest = %s ORDER BY key"
        return [to_entry(row) for row in self._all(sql, (digest,))]

    def has_vector(self, digest: str) -> bool:
        """Whether the content was embedded before."""
        return bool(self._all("SELECT 1 FROM vectors WHERE digest = %s", (digest,)))

    def broken(self) -> dict[str, str]:
        """Pictures that could not be read, with the reason."""
        return dict(self._all("SELECT key, reason FROM broken ORDER BY key"))

    def entries(self, chosen: Filter | None = None) -> list[Entry]:
        """All, or those that a filter lets through, by key."""
        condition = where(chosen, POSTGRESQL)
        sql = f"SELECT {COLUMNS} FROM entries{condition.sql} ORDER BY key"
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
        digests = {entry.digest for entry in entries} - set(vectors)
        held = {
            digest for (digest,) in self._all("SELECT digest FROM vectors WHERE digest = ANY(%s)", (list(digests),))
        }
        for entry in entries:
            if entry.digest in digests - held:
                raise IndexingError(f"{entry.key}: has no vector")
        with self._changing() as cursor:
            with cursor.copy("COPY vectors (digest, embedding) FROM STDIN WITH (FORMAT BINARY)") as copy:
                copy.set_types(["text", "vector"])
                for row in vectors.items():
                    copy.write_row(row)
            _forget(cursor, [*gone, *(entry.key for entry in entries), *(key for key, _, _ in broken)])
            marks = ", ".join(["%s"] * 8)
            cursor.executemany(f"INSERT INTO entries ({COLUMNS}) VALUES ({marks})".encode(), map(to_row, entries))
            # A name has no NUL, and captions are kept as JSON; a reason may quote anything.
            rows = [(key, stamp.size, stamp.modified_ns, reason.replace("\0", "")) for key, stamp, reason in broken]
            cursor.executemany("INSERT INTO broken VALUES (%s, %s, %s, %s)", rows)

    def remove(self, keys: Iterable[str]) -> int:
        """Drop entries; how many there were. Their vectors stay until `compact`."""
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
            SELECT -(embedding <#> %s), {COLUMNS} FROM entries JOIN vectors USING (digest){condition.sql}
            ORDER BY embedding <#> %s, place, key LIMIT %s
        """
        answers = [self._all(sql, (query, *condition.values, query, top)) for query in queries]
        return [[Found(entry=to_entry(row), score=score) for score, *row in answer] for answer in answers]

    def groups(self, threshold: float) -> list[list[str]]:
        """Keys of pictures whose content is the same, or whose vectors have at least this cosine."""
        sql = """
            SELECT array_agg(key ORDER BY key), embedding FROM entries JOIN vectors USING (digest)
            GROUP BY vectors.digest ORDER BY place
        """
        keys, vectors = list[list[str]](), list[Float32[ndarray, " E"]]()
        with self._reading(), self._database.transaction(), self._database.cursor("groups", binary=True) as cursor:
            cursor.itersize = _FETCH
            for together, vector in cursor.execute(sql):
                keys.append(together)
                vectors.append(vector)
        return groups_of_keys(keys, np.stack(vectors), threshold) if vectors else []

    def vectors(self, digests: Sequence[str]) -> dict[str, Float32[ndarray, " E"]]:
        """Of some contents."""
        with self._reading(), self._database.cursor(binary=True) as cursor:
            sql = "SELECT digest, embedding FROM vectors WHERE digest = ANY(%s)"
            found: dict[str, Float32[ndarray, " E"]] = dict(cursor.execute(sql, (list(digests),)).fetchall())
        for digest in digests:
            if digest not in found:
                raise IndexingError(f"{self.place}: has no vector of {digest}")
        return found

    def build(self, kind: Kind | None) -> About | None:
        """Nothing for None. The server's own indexes are no help: with a filter they find less than there is."""
        if kind is not None:
            raise ConfigError(f"{self.place}: a database is searched exactly; {kind} is for an index in a folder")
        return None

    def verify(self) -> list[str]:
        """What is wrong with it, and what to do; the server looks at the vectors."""
        faults = []
        odd = int(self._one("SELECT count(*) FROM vectors WHERE vector_dims(embedding) <> %s", (self.dim,)))
        if odd:
            faults.append(f"{odd} vectors have not {self.dim} numbers; index the folders again")
        num, first = self._all(
            "SELECT count(*), min(place) FROM vectors WHERE NOT abs(vector_norm(embedding) - 1) < 1e-3"
        )[0]
        if num:
            faults.append(f"{num} vectors are not of unit length, the first is number {first}; index again")
        lost = int(
            self._one(
                "SELECT count(*) FROM entries WHERE NOT EXISTS (SELECT FROM vectors WHERE vectors.digest = entries.digest)"
            )
        )
        if lost:
            faults.append(f"{lost} entries have no vector; index the folders again")
        return faults

    def size(self) -> dict[str, int]:
        """What is counted, and bytes on the server's disk."""
        unused = (
            "SELECT count(*) FROM vectors WHERE NOT EXISTS (SELECT FROM entries WHERE entries.digest = vectors.digest)"
        )
        tables = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'"
        return {
            "entries": len(self),
            "vectors": int(self._one("SELECT count(*) FROM vectors")),
            "unused": int(self._one(unused)),
            "unreadable": int(self._one("SELECT count(*) FROM broken")),
            "bytes": int(self._one(tables, (f'"{self._schema}"',))),
        }

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return self._all(sql, values)[0][0]

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._reading():
            return self._database.execute(sql.encode(), values).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise IndexingError(f"{self.place}: cannot be read ({one_line(error)})") from None

    @contextmanager
    def _changing(self) -> Iterator["psycopg.Cursor[Any]"]:
        """One transaction."""
        try:
            with self._database.transaction(), self._database.cursor() as cursor:
                yield cursor
        except (psycopg.Error, UnicodeEncodeError) as error:
            after = "it has all of this change or nothing" if self._database.broken else "it is as it was"
            raise IndexingError(f"{self.place}: cannot be written ({one_line(error)}); {after}") from None


def holds_postgres_index(address: str) -> bool:
    """Whether there is one to open.

    Raises:
        IndexingError: the server cannot be reached.
        ConfigError: the address is none.
    """
    parsed = parse_address(address)
    with _connected(parsed) as cursor:
        return _tables(cursor, parsed.schema, named="about") > 0


def create_postgres_index(address: str, *, dim: int, model: str, bundle: str) -> PostgresIndex:
    """An empty index in a schema that is empty, or not there.

    Raises:
        IndexingError: there are tables, the database cannot hold every text, or it cannot be written.
        ConfigError: the address is none.
    """
    parsed = parse_address(address)
    with _connected(parsed) as cursor, cursor.connection.transaction():
        encoding = cursor.connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise IndexingError(
                f"{parsed.shown}: its database is in {encoding}, which holds not every name; it must be UTF8"
            )
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_lock_number(parsed.schema),))  # Two that make it at once.
        if _tables(cursor, parsed.schema, named="about"):
            raise IndexingError(f"{parsed.shown}: holds an index already")
        if _tables(cursor, parsed.schema):
            raise IndexingError(f"{parsed.shown}: the schema {parsed.schema} is not empty and holds no index")
        cursor.execute("SELECT FROM pg_namespace WHERE nspname = %s", (parsed.schema,))
        if cursor.rowcount == 0:
            cursor.execute(f'CREATE SCHEMA "{parsed.schema}"'.encode())
        storage = "PLAIN" if dim <= _INLINE_DIM else "EXTERNAL"
        cursor.execute(_TABLES.format(dim=dim, storage=storage).encode())
        about = {"format": _FORMAT, "dim": dim, "model": model, "bundle": bundle}
        cursor.executemany("INSERT INTO about VALUES (%s, %s)", [(name, str(value)) for name, value in about.items()])
    return PostgresIndex(address)


@contextmanager
def _connected(address: Address) -> Iterator["psycopg.Cursor[Any]"]:
    connection = connect(address)
    try:
        with connection.cursor() as cursor:
            yield cursor
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise IndexingError(f"{address.shown}: cannot be written ({one_line(error)})") from None
    finally:
        connection.close()


def _tables(cursor: "psycopg.Cursor[Any]", schema: str, *, named: str = "%") -> int:
    """How many tables and the like a schema has."""
    sql = """
        SELECT FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
        WHERE nspname = %s AND relname LIKE %s AND relkind IN ('r', 'p', 'v', 'm', 'f')
    """
    return cursor.execute(sql, (schema, named)).rowcount


def _forget(cursor: "psycopg.Cursor[Any]", keys: list[str]) -> int:
    """Drop what is known of these pictures; how many entries there were."""
    cursor.execute("DELETE FROM broken WHERE key = ANY(%s)", (keys,))
    return cursor.execute("DELETE FROM entries WHERE key = ANY(%s)", (keys,)).rowcount


def _lock_number(schema: str) -> int:
    return int.from_bytes(blake2b(f"diptych index {schema}".encode(), digest_size=8).digest(), "big", signed=True)
