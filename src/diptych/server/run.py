"""A server process: it takes requests until a signal comes, answers those that are under way, and ends."""

import signal
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from diptych.core.errors import ConfigError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DRAIN_S = 30


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


def read_keys(path: Path | None) -> list[str]:
    """One key a line; empty lines and those that begin with # are not.

    Raises:
        ConfigError: the file cannot be read, or has no key.
    """
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{path}: holds no key; write one a line")
    if any(len(key) < 16 for key in keys):
        raise ConfigError(f"{path}: holds a key of less than 16 characters, which can be guessed")
    return keys


def serve(app: ASGIApp, bound: socket.socket) -> None:
    """Until SIGINT or SIGTERM: then no new request is taken, and those under way have half a minute."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
        timeout_keep_alive=15,
        backlog=2048,
        h11_max_incomplete_event_size=32 * 1024,
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # Uvicorn gives the signal on when it has ended.
    try:
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        bound.close()
