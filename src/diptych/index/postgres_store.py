"""An index in PostgreSQL with pgvector: opening, locking, transactions and checks.

An index is a schema with these tables:

    about     properties of the index, such as the model of the vectors
    vectors   vectors by digest; `place` numbers them in the order of addition
    entries   metadata of each picture
    broken    pictures that could not be read

Threads may share an index: each operation has its own connection (`postgres_pool.py`). If the connection of a read is lost, the
read runs once more on a new one. A change is one transaction and is never repeated. The writer's connection holds a lock, and
all changes of the writer use this connection. If the connection is lost, the lock is released, and the next change fails. The
server checks its pages itself if its cluster has checksums (`initdb --data-checksums`, the default since PostgreSQL 18).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import blake2b
from threading import RLock
from typing import Any, TypeVar

import psycopg

from diptych.core.errors import BusyError, IndexingError
from diptych.core.program import command
from diptych.index.address import parse_address
from diptych.index.dialects import POSTGRESQL
from diptych.index.pgvector import connect, one_line
from diptych.index.postgres_hnsw import is_usable
from diptych.index.postgres_pool import Connection, Connections
from diptych.index.row_counts import COUNTED
from diptych.index.sql_index import SqlIndex
from diptych.index.tables import FORMAT
from diptych.index.upgrade import MARK_CAPTIONS, NEW_COLUMNS
from diptych.index.vector_file import AGAIN

T = TypeVar("T")

_LOOK_AGAIN_S = 0.1
_LONGEST_S = 2_000_000.0
"""The server stores time limits as 32-bit milliseconds. Longer limits are treated as no limit."""


_DIGESTS_OUTSIDE = """
    SELECT FROM pg_class WHERE oid = 'vectors'::regclass AND reltoastrelid <> 0 AND pg_relation_size(reltoastrelid) > 0
    AND 2 = (
        SELECT count(*) FROM pg_attribute
        WHERE attrelid = oid AND (attname, attstorage) IN (('digest', 'x'), ('embedding', 'p'))
    )
"""
"""Returns a row if digests are stored outside the rows of their vectors, as in large indexes of earlier versions."""


class PostgresStore(SqlIndex):
    """Base of `PostgresIndex` with connections, locks and checks, without additions and searches."""

    _dialect = POSTGRESQL

    def __init__(self, address: str, *, timeout_s: float | None = None) -> None:
        """Open an existing index.

        Args:
            address: the address of the index.
            timeout_s: limit for each statement and each read, in seconds; None for no limit.

        Raises:
            IndexingError: the index does not exist, or its server cannot be reached.
            ConfigError: the address is invalid.
        """
        parsed = parse_address(address)
        self.place, self._schema = parsed.shown, parsed.schema
        if timeout_s is not None and timeout_s > _LONGEST_S:
            timeout_s = None
        self._connections = Connections(partial(connect, parsed, timeout_s=timeout_s), timeout_s=timeout_s)
        self._writer: Connection | None = None
        self._lock = RLock()  # Protects the writer's connection.
        try:
            self._describe(self._about())
        except IndexingError:
            self.close()
            raise

    def _about(self) -> dict[str, str]:
        if not self._one("SELECT to_regclass(%s) IS NOT NULL", (f'"{self._schema}".about',)):
            raise self._no_index()
        about = super()._about()
        self._check_format(about)
        return about

    def close(self) -> None:
        """Close the connections. A connection in use is closed after its operation."""
        self._connections.close()

    @contextmanager
    def writing(self, *, wait_s: float = 10.0) -> Iterator[None]:
        """Hold the writer's lock (`Index.writing`). It belongs to a connection, which changes by other threads use, too."""
        give_up_at = time.monotonic() + wait_s
        with ExitStack() as stack:
            with self._reading():
                connection = stack.enter_context(self._connections.lend(for_writing=True))
            while not self._try_lock(connection):
                if time.monotonic() > give_up_at:
                    raise BusyError(
                        f"{self.place}: is being written by {self._writer_name()}; try again when it is done"
                    )
                time.sleep(_LOOK_AGAIN_S)
            self._writer = connection
            try:
                with self._lock, self._reading():
                    self._check_model(connection)
                    self._upgrade()
                yield
            finally:
                with self._lock:
                    self._writer = None
                    self._unlock(connection)

    def _try_lock(self, connection: Connection) -> bool:
        with self._reading():
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", (lock_number(self._schema),)).fetchone()
        return row is not None and bool(row[0])

    def _unlock(self, connection: Connection) -> None:
        """Release the lock. If the server does not confirm it, close the connection."""
        is_released = False
        try:
            row = connection.execute("SELECT pg_advisory_unlock(%s)", (lock_number(self._schema),)).fetchone()
            is_released = row is not None and bool(row[0])
        except psycopg.Error:  # A lost connection holds no lock.
            pass
        finally:
            if not is_released:
                connection.close()

    def _check_model(self, connection: Connection) -> dict[str, str]:
        """The rows of the table `about`. Raises IndexingError if another model's index has replaced this one."""
        about = dict(connection.execute("SELECT name, value FROM about").fetchall())
        self._check_same_model(about)
        return about

    def _writer_name(self) -> str:
        """The name of the process that holds the lock."""
        sql = """
            SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND datname = current_database()
            AND database = datid AND (classid::bigint << 32) + objid::bigint = %s
        """
        rows = self._all(sql, (lock_number(self._schema),))
        return rows[0][0].removeprefix("diptych ") if rows and rows[0][0] else "another process"

    def verify(self) -> list[str]:
        """Faults, and what to do about them (`Index.verify`). The server checks the vectors."""
        faults = []
        num = int(self._one("SELECT count(*) FROM vectors WHERE vector_dims(embedding) <> %s", (self.dim,)))
        if num:
            faults.append(f"{num} vectors do not have {self.dim} numbers; {AGAIN}")
        num, first = self._all(
            "SELECT count(*), min(place) FROM vectors WHERE NOT abs(vector_norm(embedding) - 1) < 1e-3"
        )[0]
        if num:
            faults.append(f"{num} vectors are not of unit length, the first is number {first}; {AGAIN}")
        lost = self.lost()
        if lost:
            faults.append(f"{len(lost)} entries have no vector; {AGAIN}")
        if faults:
            self._record_damage()
        if "hnsw" in self._about() and not self._read(partial(is_usable, schema=self._schema)):
            again = command("index", "build", self.place, "--approximate")
            faults.append(f"the HNSW index is missing, which makes searches slow; build it again: {again}")
        return faults

    def remarks(self) -> list[str]:
        """A remark if digests are stored outside the rows of their vectors (`Index.remarks`)."""
        if not self._all(_DIGESTS_OUTSIDE):
            return []
        once = command("index", "build", self.place)
        return [f"the exact search takes twice as long as necessary; this makes it faster, once: {once}"]

    def _num_vectors(self) -> int:
        return int(self._one("SELECT count(*) FROM vectors"))

    def _num_bytes(self) -> int:
        tables = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'"
        return int(self._one(tables, (f'"{self._schema}"',)))

    def _count(self, name: str) -> int:
        return int(self._one(COUNTED[name]))

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._read(lambda connection: connection.execute(sql.encode(), values).fetchall())

    def _read(self, job: Callable[[Connection], T]) -> T:
        with self._reading():
            return self._connections.read(job)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.Error, UnicodeEncodeError, TimeoutError) as error:
            raise IndexingError(f"{self.place}: cannot be read ({one_line(error)})") from None

    def _upgrade(self) -> None:
        """Add the columns of later formats, in one transaction."""
        if self._current_format() == FORMAT:
            return
        assert self._writer is not None
        with self._transaction(self._writer) as cursor:
            row = cursor.execute("SELECT value FROM about WHERE name = 'format' FOR UPDATE").fetchone()
            found = FORMAT if row is None else int(row[0])
            for number, columns in NEW_COLUMNS.items():
                for column in columns if number > found else ():
                    cursor.execute(f"ALTER TABLE entries ADD COLUMN {column}".encode())
            if found == 1:
                cursor.execute('ALTER TABLE entries ALTER COLUMN target TYPE text COLLATE "C"')
                cursor.execute(MARK_CAPTIONS.encode())
            if found < FORMAT:
                cursor.execute("UPDATE about SET value = %s WHERE name = 'format'", (str(FORMAT),))

    def _set_about(self, **values: str | None) -> None:
        with self._changing() as cursor:
            cursor.execute("DELETE FROM about WHERE name = ANY(%s)", (list(values),))
            rows = [(name, value) for name, value in values.items() if value is not None]
            cursor.executemany("INSERT INTO about VALUES (%s, %s)", rows)

    @contextmanager
    def _changing(self) -> Iterator["psycopg.Cursor[Any]"]:
        """A transaction, preceded by an upgrade from an earlier format. It takes the lock unless this object holds it."""
        with self._lock:
            if self._writer is not None:
                self._upgrade()
                with self._transaction(self._writer) as cursor:
                    yield cursor
                return
        with self.writing(), self._changing() as cursor:
            yield cursor

    @contextmanager
    def _transaction(self, connection: Connection) -> Iterator["psycopg.Cursor[Any]"]:
        try:
            with connection.transaction(), connection.cursor() as cursor:
                yield cursor
        except (psycopg.Error, UnicodeEncodeError) as error:
            after = "it has all of this change or none of it" if connection.broken else "it is as it was"
            raise IndexingError(f"{self.place}: cannot be written ({one_line(error)}); {after}") from None


def lock_number(schema: str) -> int:
    """The id of the advisory lock of an index."""
    return int.from_bytes(blake2b(f"diptych index {schema}".encode(), digest_size=8).digest(), "big", signed=True)
