"""A server process: it takes requests until a signal comes, answers those that are under way, and ends."""

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
"""Seconds that requests under way have to be answered after SIGTERM or SIGINT."""
EXIT_S = 5
"""Seconds after that until the process ends, whatever it waits for."""


def bound_socket(host: str, port: int) -> socket.socket:
    """Listening there; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken, or none of this machine's.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"{host}:{port}: cannot listen there; a port lies within 0 and 65535")
    try:
        family, kind, proto, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{host}:{port}: cannot listen there ({said}); choose another with --host and --port"
        ) from None
    return bound


def address(bound: socket.socket) -> str:
    """As a browser opens it."""
    host, port = bound.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def known_hosts(host: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Names that the server answers for; none, which is any, where others than this machine reach it and no name is given."""
    return (*_LOOPBACK, host, *allowed) if allowed or is_loopback(host) else ()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_config(app: ASGIApp, *, drain_s: int = DRAIN_S) -> uvicorn.Config:
    """How uvicorn serves an application; requests that are under way at the end have so many seconds."""
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
    """Until SIGINT or SIGTERM: then no new request is taken, and those under way have `drain_s` seconds.

    The process ends `EXIT_S` seconds later at the latest, with exit code 0, even if a thread never returns.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # Uvicorn gives the signal on when it has ended.
    try:
        _Server(server_config(app, drain_s=drain_s)).run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        bound.close()


def exit_if_stuck() -> None:
    """End the process now if a worker thread is inside a call: the interpreter cannot end cleanly around it."""
    if busy_threads():
        _exit()


class _Server(uvicorn.Server):
    """Ends the process some time after the first signal, whatever the process waits for."""

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
