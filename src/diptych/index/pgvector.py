"""Connections to PostgreSQL that transfer vectors in binary form, without rounding. Shapes: E embedding."""

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
"""Time limit for opening a connection, and idle time after which each side checks whether the other is still reachable."""
_KEEPALIVES = {
    "keepalives_idle": _SILENT_S,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


class _VectorDumper(Dumper):
    """Writes a vector in the format of pgvector's `vector_recv`: the length, two unused bytes, and the numbers."""

    format = Format.BINARY

    def dump(self, obj: Float32[ndarray, " E"]) -> bytes:
        return len(obj).to_bytes(2, "big") + bytes(2) + obj.astype(">f4").tobytes()


class _VectorLoader(Loader):
    """Reads a vector in the format of pgvector's `vector_send`."""

    format = Format.BINARY

    def load(self, data: bytes | bytearray | memoryview) -> Float32[ndarray, " E"]:
        return np.frombuffer(data, dtype=">f4", offset=4).astype(np.float32)


def connect(address: Address, *, timeout_s: float | None = None) -> psycopg.Connection:
    """Connect to the database of an index, in autocommit mode. The search path is the schema of the index.

    Args:
        address: the address of the index.
        timeout_s: time limit for a statement, in seconds, after which the server cancels it. None for the setting of the
            database.

    Raises:
        ConfigError: the address is invalid.
        IndexingError: the database cannot be reached or read, or does not have pgvector.
    """
    try:
        given = conninfo_to_dict(address.database)
    except (psycopg.Error, UnicodeError):  # The message of the error may contain the password.
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
            f"{address.shown}: its database has no pgvector; an administrator can add it with: CREATE EXTENSION vector"
        )
    connection.execute("SELECT set_config('search_path', %s, false)", (f'"{address.schema}", "{home[0]}"',))
    # Without this, a writer whose machine was switched off would hold its lock for two hours.
    connection.execute("SELECT set_config('tcp_keepalives_idle', %s, false)", (str(_SILENT_S),))
    info = TypeInfo.fetch(connection, "vector")
    assert info is not None
    info.register(connection)
    dumper = type("_Dumper", (_VectorDumper,), {"oid": info.oid})  # The oid differs between databases.
    connection.adapters.register_dumper(np.ndarray, dumper)
    connection.adapters.register_loader(info.oid, _VectorLoader)


def one_line(error: Exception) -> str:
    """The message of an error on one line of at most 300 characters, without the SQL statement."""
    message = (isinstance(error, psycopg.Error) and error.diag.message_primary) or str(error)
    return " ".join(message.split())[:300]
