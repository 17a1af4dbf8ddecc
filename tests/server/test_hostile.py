"""Requests that mean no good: each is refused with a problem, the server goes on, and nothing of its inside is told."""

import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from diptych.index.protocol import Index
from diptych.inference.loaded import LoadedBundle
from diptych.server.app import create_app
from diptych.server.limits import Limits
from tests.images.hostile import png_chunk
from tests.server.makers import coded, jpeg
from tests.server.site import Answer, Site, served

SMALL = Limits(body_mb=1, all_bodies_mb=3, deadline_s=2.0, idle_s=1.5, pixels=1_000_000)


@pytest.fixture(scope="module")
def small(clip: LoadedBundle, index: Index) -> Iterator[Site]:
    """A server that takes little."""
    with served(create_app(clip, index, limits=SMALL)) as running:
        yield running


def check_refused(answer: Answer, *statuses: int) -> None:
    assert answer.status in statuses, (answer.status, answer.content[:300])
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.content.decode()
    assert answer.json["status"] == answer.status
    assert answer.json["detail"]
    for inner in ("Traceback", ".py", "site-packages", "/src/", "/tmp/"):
        assert inner not in told


def png(width: int, height: int) -> bytes:
    """A small file that says it is so large."""

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/..%2f..%2f..%2fetc%2fpasswd/file",
        "/v1/images/%2fetc%2fpasswd/file",
        "/v1/images/../../etc/passwd",
        "/v1/images/abc%00/thumb",
        "/v1/images/ABCDEF/file",
        f"/v1/images/{'a' * 5000}/file",
        "/v1/images/0123456789abcdef/file",
        "/v1/images/0123456789abcdef/thumb?px=100000",
        "/../app.py",
        "/..%2f..%2fapp.py",
        "/%2e%2e/%2e%2e/engine.py",
        "/shared/..%2f..%2fengine.py",
        "/shared/%2e%2e/%2e%2e/app.py",
        "//etc/passwd",
        "/static/../../limits.py",
    ],
)
def test_no_path_leads_to_the_file_system(small: Site, path: str) -> None:
    check_refused(small.ask("GET", path), 404, 422)


@pytest.mark.parametrize(
    "picture",
    [
        b"",
        b"nonsense",
        png(60_000, 60_000),
        png(3000, 3000),
        png(0, 0),
        jpeg()[:200],
        jpeg()[:2],
        b"GIF89a" + b"\xff" * 50,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\0" * 40,
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        b"%PDF-1.4",
        b"P6\n99999999 99999999\n255\n",
    ],
    ids=range(12),
)
def test_broken_pictures_and_bombs(small: Site, picture: bytes) -> None:
    check_refused(small.ask("POST", "/v1/embed", {"images": [coded(picture)]}), 422)
    check_refused(small.ask("POST", "/v1/search", {"terms": [{"image": coded(picture)}]}), 422)


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"", (400, 422)),
        (b"{", (400,)),
        (b"\xff\xfe{}", (400,)),
        (b'{"texts": ["\xe9"]}', (400,)),
        (b'{"texts": ["\\ud800"]}', (400, 422)),
        (b"[" * 100_000, (400,)),
        (b'{"texts": ' + b"[" * 5000 + b"]" * 5000 + b"}", (400, 422)),
        (b'{"texts": ' + b"[" * 32 + b"]" * 32 + b"}", (400,)),
        (b"null", (422,)),
        (b"[]", (422,)),
        (b'"text"', (422,)),
        (b"{}", (422,)),
        (b'{"texts": "one"}', (422,)),
        (b'{"texts": [1]}', (422,)),
        (b'{"texts": [""]}', (422,)),
        (b'{"texts": [" \\n"]}', (422,)),
        (b'{"texts": ["a"], "more": 1}', (422,)),
        (b'{"images": ["///not base64"]}', (422,)),
        (b'{"images": ["http://169.254.169.254/latest/meta-data"]}', (422,)),
        (b'{"images": ["/etc/passwd"]}', (422,)),
        (b'{"images": ["data:image/png;base64,!!!"]}', (422,)),
        (b'{"texts": ["a"], "encoding": "hex"}', (422,)),
    ],
    ids=range(22),
)
def test_bodies_that_are_none(small: Site, body: bytes, statuses: tuple[int, ...]) -> None:
    check_refused(small.ask("POST", "/v1/embed", body), *statuses)


@pytest.mark.parametrize(
    "body",
    [
        {"text": "a", "limit": 0},
        {"text": "a", "limit": 10**9},
        {"text": "a", "offset": -1},
        {"text": "a", "offset": 10**12},
        {"text": "a", "where": "width >= (" * 300},
        {"text": "a", "where": "(" * 900 + "width = 1" + ")" * 900},
        {"text": "a", "where": "not " * 50 + "width = 1"},
        {"text": "a", "where": "width = 1) or (1 = 1"},
        {"text": "a", "where": "path = 'x'; DROP TABLE entries"},
        {"text": "a", "where": "width = nan"},
        {"terms": [{"text": "a", "weight": 1e30}]},
        {"terms": [{"text": "a", "weight": float("nan")}]},
        {"terms": [{"text": "a", "weight": 10**400}]},
        {"text": "a", "where": "width < 1e400"},
        {"text": "a", "where": "taken > yesterday"},
        {"terms": [{"text": "a"}, {"text": "a", "weight": -1}]},
        {"terms": [{"text": "a", "id": "0"}]},
        {"terms": [{"weight": 1}]},
        {"terms": [{"id": "../../etc/passwd"}]},
        {"terms": [{"text": "a"}] * 1000},
        {"terms": []},
    ],
    ids=range(21),
)
def test_searches_that_make_no_sense(small: Site, body: Any) -> None:
    check_refused(small.ask("POST", "/v1/search", body), 400, 422)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("embed", {"texts": "a dog"}),
        ("embed", {"images": coded(png(1, 1))}),
        ("similarity", {"images": [coded(png(1, 1))], "texts": "a dog"}),
        ("classify", {"images": [coded(png(1, 1))], "classes": "dog"}),
        ("classify", {"images": [coded(png(1, 1))], "classes": ["dog", "cat"], "templates": "a {}"}),
        ("search", {"terms": "a dog"}),
    ],
    ids=range(6),
)
def test_one_thing_is_no_list(small: Site, path: str, body: Any) -> None:
    answer = small.ask("POST", f"/v1/{path}", body)
    check_refused(answer, 422)
    assert "valid array" in str(answer.json)


@pytest.mark.parametrize(
    ("path", "body"),
    [("embed", {"texts": [1] * 9}), ("embed", {"images": [1] * 9}), ("embeddings", {"input": [1] * 9})],
    ids=range(3),
)
def test_a_million_wrong_items_are_one_error(small: Site, path: str, body: Any) -> None:
    answer = small.ask("POST", f"/v1/{path}", body)
    check_refused(answer, 422)
    assert len(answer.json["errors"]) <= 2  # One for each type that a field may have.


def test_an_unknown_picture_of_the_index(small: Site) -> None:
    check_refused(small.ask("POST", "/v1/search", {"terms": [{"id": "0123"}]}), 404)


def test_too_many_and_too_long_texts(small: Site) -> None:
    check_refused(small.ask("POST", "/v1/embed", {"texts": ["a"] * 5000}), 422)
    check_refused(small.ask("POST", "/v1/embed", {"texts": ["a" * 5000]}), 422)
    check_refused(small.ask("POST", "/v1/embeddings", {"input": ["a"] * 5000}), 422)
    many = {"images": [coded(jpeg())], "classes": [f"class {i}" for i in range(3000)]}
    check_refused(small.ask("POST", "/v1/classify", many), 422)
    check_refused(small.ask("POST", "/v1/embed", {"images": [coded(png(1, 1))] * 100}), 422)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", b"a"),
        ("", b'{"texts": ["a"]}'),
        ("text/json", b'{"texts": ["a"]}'),
        ("application/xml", b"<a/>"),
        ("multipart/form-data", b"abc"),
        ("multipart/form-data; boundary=x", b"--x\r\nnonsense"),
        ("multipart/form-data; boundary=x", b""),
        ("application/json; charset=utf-16", "{}".encode("utf-16")),
    ],
    ids=range(8),
)
def test_other_kinds_of_content(small: Site, kind: str, body: bytes) -> None:
    check_refused(small.ask("POST", "/v1/embed", body, {"Content-Type": kind}), 400, 415, 422)


def test_wrong_methods(small: Site) -> None:
    for method in ("DELETE", "PUT", "PATCH", "GET"):
        check_refused(small.ask(method, "/v1/embed"), 405)


def spoken(site: Site, said: bytes) -> bytes:
    """What is answered to bytes as they stand."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=60) as connection:
        connection.sendall(said)
        heard = b""
        try:
            while part := connection.recv(65536):
                heard += part
                head, _, rest = heard.partition(b"\r\n\r\n")
                if rest and b"content-length" in head.lower():
                    break
        except ConnectionResetError:
            pass
        return heard


def head(*lines: str) -> bytes:
    return "\r\n".join(
        ("POST /v1/embed HTTP/1.1", "Host: x", "Content-Type: application/json", *lines, "", "")
    ).encode()


def test_a_body_of_a_gigabyte_is_refused_before_it_comes(small: Site) -> None:
    assert spoken(small, head(f"Content-Length: {2**30}")).startswith(b"HTTP/1.1 413")  # No byte of it was sent.


def test_a_client_that_sends_first_and_reads_then_is_told(small: Site) -> None:
    for _ in range(3):
        answer = small.ask("POST", "/v1/embed", b" " * 20_000_000)
        check_refused(answer, 413)
        assert "send fewer inputs at once" in answer.json["detail"]


def test_a_body_without_end_is_cut_off(small: Site) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert spoken(small, head("Transfer-Encoding: chunked") + 40 * chunk).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_not_waited_for(small: Site) -> None:
    assert spoken(small, head("Content-Length: 100") + b'{"texts"').startswith(b"HTTP/1.1 408")
    assert spoken(small, head("Content-Length: 100")).startswith(b"HTTP/1.1 408")


def test_lengths_that_lie(small: Site) -> None:
    assert b"HTTP/1.1 4" in spoken(small, head("Content-Length: -5") + b"{}")
    assert b"HTTP/1.1 4" in spoken(small, head("Content-Length: ten") + b"{}")
    assert spoken(small, b"\x16\x03\x01\x02\x00nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")


def _body_bytes(site: Site) -> float:
    """What has arrived of the bodies of current requests."""
    counted = site.ask("GET", "/metrics").content.decode()
    return float(next(line for line in counted.splitlines() if line.startswith("diptych_body_bytes ")).split()[1])


def test_announced_bodies_cost_nothing(small: Site) -> None:
    """Several connections announce a megabyte and send a byte; everyone else is served."""
    held = [socket.create_connection(("127.0.0.1", small.port), timeout=60) for _ in range(8)]
    try:
        for connection in held:
            connection.sendall(head(f"Content-Length: {2**20}") + b"{")
        assert any(_body_bytes(small) == 8 for _ in range(500))
        assert small.ask("POST", "/v1/embed", {"texts": ["a" * 1000] * 300}).status == 200
    finally:
        for connection in held:
            connection.close()


def test_bodies_that_arrived_are_bounded_together_and_leave_room_for_small_ones(small: Site) -> None:
    held = [socket.create_connection(("127.0.0.1", small.port), timeout=60) for _ in range(3)]
    try:
        for connection in held:
            connection.sendall(head(f"Content-Length: {2**20}") + b" " * 700_000)
        assert any(_body_bytes(small) == 3 * 700_000 for _ in range(500))
        check_refused(small.ask("POST", "/v1/embed", json.dumps({"texts": ["a" * 1000] * 300}).encode()), 429)
        assert small.ask("POST", "/v1/embed", {"texts": ["a"]}).status == 200
    finally:
        for connection in held:
            connection.close()


def test_the_server_is_as_well_as_before(small: Site) -> None:
    """The last test of this file."""
    assert len(small.post("/v1/embed", {"texts": ["a"]})["texts"]) == 1
    waiting = [
        line for line in small.ask("GET", "/metrics").content.decode().splitlines() if "diptych_waiting{" in line
    ]
    assert waiting
    assert all(line.endswith(" 0.0") for line in waiting)
