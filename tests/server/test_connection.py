"""Before any request is complete: headers that are too large, or never end."""

import socket
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect

from diptych.server import connection
from tests.server.site import Site, served


@pytest.fixture(scope="module")
def plain() -> Iterator[Site]:
    """A server that answers with the length of what was sent."""
    app = FastAPI()

    @app.post("/")
    async def length(request: Request) -> int:
        try:
            return len(await request.body())
        except ClientDisconnect:
            return -1

    @app.get("/")
    async def nothing() -> int:
        return 0

    with served(app) as site:
        yield site


def spoken(site: Site, *parts: bytes) -> bytes:
    """What is answered until the server closes the connection, or nothing comes for a second."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=60) as link:
        heard = b""
        try:
            for part in parts:
                link.sendall(part)
            while content := link.recv(65536):
                heard += content
                if heard.endswith((b"}", b"0")):
                    break
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        return heard


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [GET + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n"],
        [GET + b"X-A: " + b"a" * 40_000],
        [GET, *[b"X-A: aaaaaaaaaaaaaaaaaaaa\r\n"] * 2000],
        [b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n"],
        [GET + b"X" * 40_000],
    ],
    ids=["value", "value without end", "many", "address", "name without end"],
)
def test_large_headers_are_refused(plain: Site, parts: list[bytes]) -> None:
    heard = spoken(plain, *parts)
    assert heard.startswith(b"HTTP/1.1 431") or (len(parts) > 1 and heard == b"")  # Closed while it was being sent.
    assert plain.ask("GET", "/").status == 200


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "start",
    [GET + b"X-A: ", CHUNKED + b"1\r\na\r\n0\r\nX-A: ", CHUNKED + b"1;"],
    ids=["header", "trailer", "chunk extension"],
)
def test_what_has_no_end_is_cut_off(plain: Site, start: bytes) -> None:
    """Hardly anything of 32 MiB is read: the connection is closed."""
    with socket.create_connection(("127.0.0.1", plain.port), timeout=60) as link:
        link.sendall(start)
        with pytest.raises(OSError, match=r"reset|pipe"):
            link.sendall(b"a" * 2**25)
    assert plain.ask("GET", "/").status == 200


def test_bodies_of_any_shape_pass(plain: Site) -> None:
    assert plain.ask("POST", "/", b"a" * 5_000_000).content == b"5000000"
    assert spoken(plain, CHUNKED + b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n").endswith(b"50000")
    twice = spoken(plain, GET + b"\r\n" + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789")
    assert twice.count(b"HTTP/1.1 200") >= 1


@pytest.mark.parametrize(
    "said", [b"", b"GET / HT", GET, GET + b"\r\nGET / HT"], ids=["nothing", "line", "headers", "2nd"]
)
def test_headers_that_never_end_are_not_waited_for(plain: Site, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_S", 0.3)
    with socket.create_connection(("127.0.0.1", plain.port), timeout=60) as link:
        link.sendall(said)
        heard = b""
        if said.endswith(b"HT") and said.startswith(GET):
            time.sleep(0.1)
            link.sendall(b"TP/1")
        while content := link.recv(65536):  # Until the server closes.
            heard += content
    assert b"HTTP/1.1 408" in heard


def test_what_is_not_http_is_refused(plain: Site) -> None:
    assert spoken(plain, b"\x16\x03\x01\x02\x00nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
