"""An index in PostgreSQL with pgvector: a schema of a database, which several machines reach.

    about     what made the vectors
    vectors   by digest; `place` counts them in the order in which they came
    entries   what is known of each picture
    broken    pictures that could not be read

A change is one transaction. Who writes holds an advisory lock, which the server lets go of when the connection ends. The server
checks its pages itself, if its cluster has checksums (`initdb --data-checksums`, the default since PostgreSQL 18).
"""

import json
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
from diptych.index.address import parse_address
from diptych.index.approximate import About, Kind
from diptych.index.dialects import POSTGRESQL, where
from diptych.index.entry import Entry, Found, Stamp
from diptych.index.filters import Filter
from diptych.index.groups import groups_of_keys
from diptych.index.pgvector import connect, one_line
from diptych.index.tables import COLUMNS, COLUMNS_OF_FORMAT, FORMAT, known_models, to_entry, to_row
from diptych.index.upgrade import MARK_CAPTIONS, NEW_COLUMNS

_LOOK_AGAIN_S = 0.1
_FETCH = 4096


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
        self._format, self.dim, self.bundle = int(about["format"]), int(about["dim"]), about["bundle"]
        self.models = known_models(about)

    @property
    def model(self) -> str:
        """Tells the model that made the vectors from any other."""
        return self.models[0]

    def _about(self) -> dict[str, str]:
        if not self._one("SELECT to_regclass(%s) IS NOT NULL", (f'"{self._schema}".about',)):
            raise IndexingError(
                f"{self.place}: holds no index; make one with: diptych index add '{self.place}' FOLDER --bundle BUNDLE"
            )
        about = dict(self._all("SELECT name, value FROM about"))
        if about.get("format") not in {str(known) for known in COLUMNS_OF_FORMAT}:
            raise IndexingError(
                f"{self.place}: is an index of format {about.get('format')}, and this version reads 1 and 2; "
                "install the version of Diptych that wrote it, or a newer one"
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
        number = lock_number(self._schema)
        # The server would give the lock again to the connection that has it.
        while self._is_writing or not self._one("SELECT pg_try_advisory_lock(%s)", (number,)):
            if time.monotonic() > give_up_at:
                raise BusyError(f"{self.place}: is being written by {self._holder()}; try again when it is done")
            time.sleep(_LOOK_AGAIN_S)
        self._is_writing = True
        try:
            self._upgrade()
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
        rows = self._all(sql, (lock_number(self._schema),))
        return rows[0][0].removeprefix("diptych ") if rows and rows[0][0] else "another process"

    def rename_model(self, models: Sequence[str]) -> None:
        """Store the names of the same model, the current one first."""
        with self._changing() as cursor:
            cursor.execute("DELETE FROM about WHERE name IN ('model', 'aliases')")
            rows = [("model", models[0]), ("aliases", json.dumps(models[1:]))]
            cursor.executemany("INSERT INTO about VALUES (%s, %s)", rows)
        self.models = tuple(models)

    def stamps(self) -> dict[str, Stamp]:
        """Of every entry and every picture that could not be read, by key."""
        rows = self._all(
            "SELECT key, size, modified_ns FROM entries UNION ALL SELECT key, size, modified_ns FROM broken"
        )
        return {key: Stamp(size=size, modified_ns=modified) for key, size, modified in rows}

    def sidecars(self) -> dict[str, Stamp]:
        """Stamps of the text files that captions were read from, by key of the entry."""
        if self._is_old():
            return {}
        rows = self._all("SELECT key, sidecar_size, sidecar_ns FROM entries WHERE sidecar_size IS NOT NULL")
        return {key: Stamp(size=size, modified_ns=modified) for key, size, modified in rows}

    def targets(self) -> dict[str, str]:
        """Resolved paths of the pictures that a symbolic link leads to, by key of the entry."""
        return {} if self._is_old() else dict(self._all("SELECT key, target FROM entries WHERE target IS NOT NULL"))

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

    def broken(self) -> dict[str, str]:
        """Pictures that could not be read, with the reason."""
        return dict(self._all("SELECT key, reason FROM broken ORDER BY key"))

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
            marks = ", ".join(["%s"] * (COLUMNS.count(",") + 1))
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
            SELECT -(embedding <#> %s), {self._columns()} FROM entries JOIN vectors USING (digest){condition.sql}
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

    def remarks(self) -> list[str]:
        """Nothing: an addition that was interrupted leaves nothing in a database."""
        return []

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

    def _is_old(self) -> bool:
        """Whether it is of format 1 still; another process may have upgraded it."""
        if self._format == 1:
            self._format = int(self._about()["format"])
        return self._format == 1

    def _columns(self) -> str:
        return COLUMNS_OF_FORMAT[1 if self._is_old() else 2]

    def _upgrade(self) -> None:
        """Add the columns of format 2, in one transaction."""
        if not self._is_old():
            return
        with self._transaction() as cursor:
            (found,) = cursor.execute("SELECT value FROM about WHERE name = 'format' FOR UPDATE").fetchone() or ("",)
            if found == "1":
                for column in NEW_COLUMNS:
                    cursor.execute(f"ALTER TABLE entries ADD COLUMN {column}".encode())
                cursor.execute('ALTER TABLE entries ALTER COLUMN target TYPE text COLLATE "C"')
                cursor.execute(MARK_CAPTIONS.encode())
                cursor.execute("UPDATE about SET value = %s WHERE name = 'format'", (str(FORMAT),))

    @contextmanager
    def _changing(self) -> Iterator["psycopg.Cursor[Any]"]:
        """One transaction, after an upgrade if the index is of format 1."""
        self._upgrade()
        with self._transaction() as cursor:
            yield cursor

    @contextmanager
    def _transaction(self) -> Iterator["psycopg.Cursor[Any]"]:
        try:
            with self._database.transaction(), self._database.cursor() as cursor:
                yield cursor
        except (psycopg.Error, UnicodeEncodeError) as error:
            after = "it has all of this change or nothing" if self._database.broken else "it is as it was"
            raise IndexingError(f"{self.place}: cannot be written ({one_line(error)}); {after}") from None


def _forget(cursor: "psycopg.Cursor[Any]", keys: list[str]) -> int:
    """Drop what is known of these pictures; how many entries there were."""
    cursor.execute("DELETE FROM broken WHERE key = ANY(%s)", (keys,))
    return cursor.execute("DELETE FROM entries WHERE key = ANY(%s)", (keys,)).rowcount


def lock_number(schema: str) -> int:
    """The number of the advisory lock of an index."""
    return int.from_bytes(blake2b(f"diptych index {schema}".encode(), digest_size=8).digest(), "big", signed=True)
