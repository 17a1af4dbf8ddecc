"""Create an index in PostgreSQL."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from diptych.core.errors import BusyError, IndexingError
from diptych.index.address import Address, parse_address
from diptych.index.pgvector import connect, one_line
from diptych.index.postgres import PostgresIndex
from diptych.index.postgres_store import lock_number
from diptych.index.tables import FORMAT

_TABLES = """
CREATE TABLE about (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE vectors (
    digest text COLLATE "C" PRIMARY KEY, place bigint GENERATED ALWAYS AS IDENTITY, embedding vector({dim}) NOT NULL
);
ALTER TABLE vectors ALTER COLUMN embedding SET STORAGE {storage}, ALTER COLUMN digest SET STORAGE PLAIN;
CREATE TABLE entries (
    key text COLLATE "C" PRIMARY KEY, digest text COLLATE "C" NOT NULL, size bigint NOT NULL, modified_ns bigint NOT NULL,
    width integer, height integer, taken text COLLATE "C", captions text COLLATE "C" NOT NULL,
    sidecar_size bigint, sidecar_ns bigint, target text COLLATE "C", phash bigint
);
CREATE INDEX entries_by_digest ON entries (digest);
CREATE TABLE broken (
    key text COLLATE "C" PRIMARY KEY, size bigint NOT NULL, modified_ns bigint NOT NULL, reason text NOT NULL
);
"""
_CREATE_S, _LOOK_AGAIN_S = 10.0, 0.1
_INLINE_DIM = 1900
"""Vectors of up to this dimension fit into a page of the table, and searches read them seven times faster than from TOAST."""


def holds_postgres_index(address: str) -> bool:
    """Whether an index exists at an address.

    Raises:
        IndexingError: the server cannot be reached.
        ConfigError: the address is invalid.
    """
    parsed = parse_address(address)
    with _connected(parsed) as cursor:
        return _tables(cursor, parsed.schema, named="about") > 0


def create_postgres_index(
    address: str, *, dim: int, model: str, bundle: str, aliases: Sequence[str] = ()
) -> PostgresIndex:
    """Create an empty index in a schema that is empty or does not exist.

    Args:
        address: the address of the index.
        dim: embedding dimension.
        model: identity of the model that computes the vectors.
        bundle: path of the bundle of the model.
        aliases: other names of the same model.

    Raises:
        IndexingError: the schema contains an index, which another process may just have created, or another table; the
            encoding of the database is not UTF-8; or the database cannot be written.
        BusyError: another process has been creating it for ten seconds.
        ConfigError: the address is invalid.
    """
    parsed = parse_address(address)
    with _connected(parsed) as cursor, cursor.connection.transaction():
        encoding = cursor.connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise IndexingError(
                f"{parsed.shown}: its database has the encoding {encoding}, which cannot store every name; it must be UTF8"
            )
        _lock_to_create(cursor, parsed)
        if _tables(cursor, parsed.schema):
            raise IndexingError(f"{parsed.shown}: the schema {parsed.schema} is not empty and holds no index")
        cursor.execute("SELECT FROM pg_namespace WHERE nspname = %s", (parsed.schema,))
        if cursor.rowcount == 0:
            cursor.execute(f'CREATE SCHEMA "{parsed.schema}"'.encode())
        storage = "PLAIN" if dim <= _INLINE_DIM else "EXTERNAL"
        cursor.execute(_TABLES.format(dim=dim, storage=storage).encode())
        about = {"format": FORMAT, "dim": dim, "model": model, "bundle": bundle, "aliases": json.dumps(list(aliases))}
        cursor.executemany("INSERT INTO about VALUES (%s, %s)", [(name, str(value)) for name, value in about.items()])
    return PostgresIndex(address)


def _lock_to_create(cursor: psycopg.Cursor[Any], address: Address) -> None:
    """Take the writer's lock until the transaction ends. The process that creates the index may write to it for hours."""
    give_up_at = time.monotonic() + _CREATE_S
    while True:
        is_locked = cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (lock_number(address.schema),)).fetchone()
        if _tables(cursor, address.schema, named="about"):
            raise IndexingError(f"{address.shown}: holds an index already")
        if is_locked == (True,):
            return
        if time.monotonic() > give_up_at:
            raise BusyError(f"{address.shown}: is being created by another process; try again when it is done")
        time.sleep(_LOOK_AGAIN_S)


@contextmanager
def _connected(address: Address) -> Iterator[psycopg.Cursor[Any]]:
    connection = connect(address)
    try:
        with connection.cursor() as cursor:
            yield cursor
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise IndexingError(f"{address.shown}: cannot be written ({one_line(error)})") from None
    finally:
        connection.close()


def _tables(cursor: psycopg.Cursor[Any], schema: str, *, named: str = "%") -> int:
    """Number of tables, views and similar objects of a schema whose names match a LIKE pattern."""
    sql = """
        SELECT FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
        WHERE nspname = %s AND relname LIKE %s AND relkind IN ('r', 'p', 'v', 'm', 'f')
    """
    return cursor.execute(sql, (schema, named)).rowcount
