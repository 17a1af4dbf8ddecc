"""Runs a server process until it receives a signal, and shuts it down gracefully."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from diptych.core.errors import ConfigError
from diptych.server.connection import BoundedProtocol
from diptych.server.log import log_config
from diptych.server.problems import LOG
from diptych.server.workers import busy_threads

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
DRAIN_S = 30
"""Time in seconds to complete current requests after SIGTERM or SIGINT."""
EXIT_S = 5
"""Time in seconds after `DRAIN_S` until the process exits unconditionally."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address.

    Args:
        host: host name or IP address.
        port: port; 0 selects a free one.

    Raises:
        ConfigError: the address is in use, or does not belong to this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"{host}:{port}: cannot listen there; a port must be from 0 to 65535")
    try:
        family, kind, proto, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(sockaddr)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{host}:{port}: cannot listen there ({reason}); choose another with --host and --port"
        ) from None
    return bound


def base_url(bound: socket.socket) -> str:
    """The URL of the server for a browser."""
    host, port = bound.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allowed_hosts(host: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Host names that requests may use; empty to allow any name.

    Any name is allowed if other machines can reach the server and `allowed` is empty.

    Args:
        host: the address that the server listens on.
        allowed: further names.
    """
    return (*_LOOPBACK, host, *allowed) if allowed or is_loopback(host) else ()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_config(app: ASGIApp, *, drain_s: int = DRAIN_S) -> uvicorn.Config:
    """The configuration of uvicorn for an application.

    Args:
        app: the application.
        drain_s: time in seconds to complete current requests at shutdown.
    """
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_config=log_config("uvicorn", LOG.name, "asyncio"),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_s,
        timeout_keep_alive=15,
        backlog=2048,
    )


def serve(app: ASGIApp, bound: socket.socket, *, drain_s: int = DRAIN_S) -> None:
    """Serve an application until SIGINT or SIGTERM. New requests are then refused, and current ones are completed.

    The process exits with code 0 at most `drain_s + EXIT_S` seconds after the signal, even if a thread never returns.

    Args:
        app: the application.
        bound: a bound socket. It is closed at the end.
        drain_s: time in seconds to complete current requests.
    """
    # Uvicorn raises the signal again after it has ended.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _Server(server_config(app, drain_s=drain_s)).run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        bound.close()


def exit_if_stuck() -> None:
    """Exit at once if a worker thread is running a call, because the interpreter cannot shut down cleanly then."""
    if busy_threads():
        _exit()


class _Server(uvicorn.Server):
    """Exits unconditionally some time after the first signal."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            timer = threading.Timer((self.config.timeout_graceful_shutdown or 0) + EXIT_S, _exit)
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


def _exit() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
