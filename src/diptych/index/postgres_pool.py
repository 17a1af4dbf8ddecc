"""Connections to PostgreSQL for several threads: each operation has its own connection, and lost connections are replaced.

`psycopg_pool` is not used: it connects in its own threads with growing pauses, and its callers get a timeout without the
server's reason. Here the caller connects, so an outage is reported at once with its reason, and the first attempt after it
succeeds.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

T = TypeVar("T")
Connection = psycopg.Connection[Any]

_MAX_IDLE = 8
"""Maximum number of unused connections that stay open."""
_GRACE_S = 1.0
"""The server cancels a statement at the time limit. If it does not respond within this additional time, the client
disconnects."""


class Connections:
    """A pool of connections. Two threads never use a connection at the same time.

    Args:
        connect: opens a connection.
        timeout_s: limit for a read, in seconds; None for no limit.
    """

    def __init__(self, connect: Callable[[], Connection], *, timeout_s: float | None) -> None:
        self._connect, self._timeout_s = connect, timeout_s
        self._idle: list[Connection] = []
        self._lock, self._is_closed = threading.Lock(), False

    def read(self, job: Callable[[Connection], T]) -> T:
        """Run a read-only job and return its result. If its connection is lost, run it once more on a new one.

        Raises:
            TimeoutError: the job took longer than the limit.
            psycopg.Error: the job failed, or the server cannot be reached.
            IndexingError: the server cannot be reached.
        """
        with suppress(LostConnectionError):
            return self._run(job)
        self._close_idle()  # The idle connections were probably lost, too.
        return self._run(job)

    def _run(self, job: Callable[[Connection], T]) -> T:
        limit_s = None if self._timeout_s is None else self._timeout_s + _GRACE_S
        with self.lend() as connection, answering_within(connection, limit_s):
            try:
                return job(connection)
            except psycopg.Error as error:
                if not (connection.closed or error.diag.severity_nonlocalized in {"FATAL", "PANIC"}):
                    raise
                connection.close()
                raise LostConnectionError(str(error)) from error

    @contextmanager
    def lend(self, *, for_writing: bool = False) -> Iterator[Connection]:
        """Lend a connection that only this block uses.

        Args:
            for_writing: check first that the connection works, because a write is not repeated.

        Raises:
            psycopg.Error: the pool is closed.
            IndexingError: the server cannot be reached.
        """
        connection = self._take()
        if for_writing and not _is_alive(connection):
            connection.close()
            self._close_idle()
            connection = self._take()
        try:
            yield connection
        finally:
            self._take_back(connection)

    def close(self) -> None:
        """Close all connections. Connections in use are closed when they are returned."""
        self._is_closed = True
        self._close_idle()

    def _take(self) -> Connection:
        with self._lock:
            if self._is_closed:
                raise psycopg.InterfaceError("the index is closed")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _take_back(self, connection: Connection) -> None:
        is_usable = not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE
        with self._lock:
            if is_usable and not self._is_closed and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _close_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class LostConnectionError(psycopg.OperationalError):
    """The connection was lost before the result was complete."""


@contextmanager
def answering_within(connection: Connection, limit_s: float | None) -> Iterator[None]:
    """Close the connection if the block exceeds the limit. TCP does not detect a server that hangs.

    Raises:
        TimeoutError: the block exceeded the limit.
    """
    if limit_s is None:
        yield
        return
    lock, is_over, has_ended = threading.Lock(), False, False

    def end_connection() -> None:
        nonlocal has_ended
        with lock, suppress(psycopg.Error, OSError):
            if not is_over:  # Otherwise another thread may be using the connection.
                has_ended = True
                with socket.socket(fileno=os.dup(connection.fileno())) as twin:
                    twin.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit_s, end_connection)
    timer.daemon = True
    timer.start()
    try:
        yield
    except psycopg.Error:
        if has_ended:
            raise TimeoutError(f"no answer within {limit_s:g} s") from None
        raise
    finally:
        timer.cancel()
        with lock:
            is_over = True


def _is_alive(connection: Connection) -> bool:
    try:
        connection.execute("")
    except psycopg.Error:
        return False
    return True
