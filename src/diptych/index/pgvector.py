"""A connection to PostgreSQL that takes and gives vectors as they are, bit for bit. Shapes: E embedding."""

import math
import os
import socket

import numpy as np
import psycopg
from jaxtyping import Float32
from numpy import ndarray
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format
from psycopg.types import TypeInfo

from diptych.core.errors import ConfigError, IndexingError
from diptych.index.address import Address
from diptych.index.postgres_pool import answering_within

_CONNECT_S, _SILENT_S = 10, 30
"""Limit for opening a connection, and seconds of silence after which each side checks that the other is still reachable."""
_KEEPALIVES = {
    "keepalives_idle": _SILENT_S,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


class _VectorDumper(Dumper):
    """A vector as pgvector's `vector_recv` reads it: the length, two bytes of nothing, the numbers."""

    format = Format.BINARY

    def dump(self, obj: Float32[ndarray, " E"]) -> bytes:
        return len(obj).to_bytes(2, "big") + bytes(2) + obj.astype(">f4").tobytes()


class _VectorLoader(Loader):
    """The reverse."""

    format = Format.BINARY

    def load(self, data: bytes | bytearray | memoryview) -> Float32[ndarray, " E"]:
        return np.frombuffer(data, dtype=">f4", offset=4).astype(np.float32)


def connect(address: Address, *, timeout_s: float | None = None) -> psycopg.Connection:
    """To a database; names without a schema are the index's, and each statement is committed unless a block joins several.

    Args:
        address: of the database.
        timeout_s: the server cancels a statement that takes longer; None for the database's own setting.

    Raises:
        ConfigError: the address is none.
        IndexingError: it cannot be reached, or has no vectors.
    """
    try:
        given = conninfo_to_dict(address.database)
    except (psycopg.Error, UnicodeError):  # What it says may hold the password.
        raise ConfigError(f"{address.shown}: is no address; write postgresql://USER@HOST/DATABASE?index=NAME") from None
    own = {"application_name": f"diptych process {os.getpid()} on {socket.gethostname()}", "client_encoding": "utf8"}
    limit_s = _CONNECT_S if timeout_s is None else min(_CONNECT_S, max(2, math.ceil(timeout_s)))
    settings = {"connect_timeout": limit_s, **_KEEPALIVES, **given, **own}
    try:
        connection = psycopg.connect(make_conninfo("", **settings), autocommit=True)
        # Statements must see changes made before the lock was taken, whatever the database's default is.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    except (psycopg.Error, OSError, UnicodeError) as error:
        raise IndexingError(f"{address.shown}: cannot be reached ({one_line(error)})") from None
    try:
        with answering_within(connection, limit_s):
            _prepare(connection, address)
            if timeout_s is not None:
                milliseconds = str(max(1, round(timeout_s * 1000)))
                connection.execute("SELECT set_config('statement_timeout', %s, false)", (milliseconds,))
    except (psycopg.Error, TimeoutError) as error:
        connection.close()
        raise IndexingError(f"{address.shown}: cannot be read ({one_line(error)})") from None
    except IndexingError:
        connection.close()
        raise
    return connection


def _prepare(connection: psycopg.Connection, address: Address) -> None:
    home = connection.execute(
        "SELECT nspname FROM pg_extension JOIN pg_namespace ON extnamespace = pg_namespace.oid WHERE extname = 'vector'"
    ).fetchone()
    if home is None:
        raise IndexingError(
            f"{address.shown}: its database has no pgvector; someone who may should run in it: CREATE EXTENSION vector"
        )
    connection.execute("SELECT set_config('search_path', %s, false)", (f'"{address.schema}", "{home[0]}"',))
    # A writer whose machine was switched off would otherwise hold its lock for two hours.
    connection.execute("SELECT set_config('tcp_keepalives_idle', %s, false)", (str(_SILENT_S),))
    info = TypeInfo.fetch(connection, "vector")
    assert info is not None
    info.register(connection)
    dumper = type("_Dumper", (_VectorDumper,), {"oid": info.oid})  # The number differs from database to database.
    connection.adapters.register_dumper(np.ndarray, dumper)
    connection.adapters.register_loader(info.oid, _VectorLoader)


def one_line(error: Exception) -> str:
    """What went wrong, without the statement in which it did."""
    message = (isinstance(error, psycopg.Error) and error.diag.message_primary) or str(error)
    return " ".join(message.split())[:300]
