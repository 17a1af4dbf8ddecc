"""Who may ask, and what every answer carries."""

import asyncio
import base64
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from diptych.core.errors import ConfigError
from diptych.inference.loaded import LoadedBundle
from diptych.server.app import create_app
from diptych.server.client import Client
from diptych.server.guard import HEADERS, Guard
from diptych.server.keys import read_keys
from diptych.server.limits import Limits
from diptych.server.log import VisibleFormatter
from diptych.server.metrics import Counts
from diptych.server.run import allowed_hosts
from tests.server.site import Site, served

KEY, OTHER = "a-key-of-24-characters-a", "another-key-of-25-chars-b"


@pytest.fixture(scope="module")
def locked(clip: LoadedBundle) -> Iterator[Site]:
    with served(create_app(clip, keys=[KEY, OTHER])) as running:
        yield running


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/v1/info", "/metrics", "/openapi.json", "/nothing"])
def test_without_a_key_nothing_but_health_answers(locked: Site, path: str) -> None:
    answer = locked.ask("GET", path)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert locked.ask("GET", path, headers={"X-API-Key": KEY[:-1]}).status == 401
    assert locked.ask("GET", path, headers={"X-API-Key": KEY + "x"}).status == 401
    assert locked.ask("GET", path, headers={"X-API-Key": KEY}).status != 401
    for open_path in ("/healthz", "/readyz"):
        assert locked.ask("GET", open_path).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": OTHER},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": "Basic " + base64.b64encode(f"anybody:{KEY}".encode()).decode()},
    ],
    ids=["header", "bearer", "browser"],
)
def test_a_key_is_taken_in_three_ways(locked: Site, headers: dict[str, str]) -> None:
    assert locked.ask("GET", "/v1/info", headers=headers).status == 200


@pytest.mark.parametrize("given", ["Basic !!!", "Basic", "Bearer", "Nonsense abc", "\xff\xfe"])
def test_nonsense_is_no_key(locked: Site, given: str) -> None:
    assert locked.ask("GET", "/v1/info", headers={"Authorization": given}).status == 401


@pytest.mark.parametrize("path", ["/", "/v1/info", "/v1/nothing", "/healthz"])
def test_every_answer_has_the_headers_that_protect(site: Site, path: str) -> None:
    answer = site.ask("GET", path, headers={"Origin": "https://elsewhere.example"})
    for name, value in HEADERS.items():
        assert answer.headers[name.lower()] == value
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert "server" not in answer.headers or "uvicorn" in answer.headers["server"]  # The program names itself off.


def test_a_strange_host_is_refused(site: Site) -> None:
    assert site.ask("GET", "/healthz", headers={"Host": "rebound.example"}).status == 421
    assert site.ask("GET", "/healthz", headers={"Host": f"localhost:{site.port}"}).status == 200


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "a@b", "a/b", "localhost:99999", "localhost:x", "[zz]", "\xff"])
def test_a_host_that_cannot_be_read(locked: Site, site: Site, host: str) -> None:
    for asked in (locked, site):
        answer = asked.ask("GET", "/healthz", headers={"Host": host})
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/info/", "/page", "/healthz/", "/v1/search/"])
def test_no_redirect_names_a_host(open_site: Site, path: str) -> None:
    answer = open_site.ask("GET", path, headers={"Host": "elsewhere.example"})
    assert answer.status == 404
    assert "location" not in {name.lower() for name in answer.headers}


@pytest.fixture(scope="module")
def open_site(clip: LoadedBundle) -> Iterator[Site]:
    """A server that answers for any host."""
    with served(create_app(clip, hosts=())) as running:
        yield running


FOREIGN = [
    {"Origin": "https://elsewhere.example"},
    {"Origin": "http://localhost:1"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://elsewhere.example"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=range(len(FOREIGN)))
def test_pages_of_other_sites_are_refused(site: Site, open_site: Site, headers: dict[str, str]) -> None:
    for asked in (site, open_site):
        assert asked.ask("POST", "/v1/embed", {"texts": ["a"]}, headers).status == 403
        assert asked.ask("DELETE", "/", headers=headers).status == 403
        assert asked.ask("GET", "/v1/images/abc/heat?text=a", headers=headers).status == 403


@pytest.mark.parametrize("site_of_link", ["cross-site", "same-site", "none"])
def test_a_link_from_another_site_opens_the_page(site: Site, site_of_link: str) -> None:
    link = {"Sec-Fetch-Site": site_of_link, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert site.ask("GET", "/", headers=link).status == 200


def test_the_own_page_is_let_in(clip: LoadedBundle, site: Site) -> None:
    body = {"texts": ["a"]}
    own = f"http://127.0.0.1:{site.port}"
    for headers in (
        {},
        {"Origin": own},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Origin": "null", "Sec-Fetch-Site": "same-origin"},  # As some browsers have it without a referrer.
        {"Sec-Fetch-Site": "none"},
    ):
        assert site.ask("POST", "/v1/embed", body, headers).status == 200
    with served(create_app(clip, hosts=["127.0.0.1", "photos.example"])) as proxied:
        browser = {"Origin": "https://photos.example:8443", "Sec-Fetch-Site": "same-origin"}
        assert proxied.ask("POST", "/v1/embed", body, browser).status == 200
        tls = {"Origin": "https://photos.example", "Host": "photos.example"}
        assert proxied.ask("POST", "/v1/embed", body, tls).status == 200


def test_which_hosts_are_known() -> None:
    assert "photos.example" in allowed_hosts("127.0.0.1", ["photos.example"])
    assert allowed_hosts("127.0.0.1", [])
    assert allowed_hosts("0.0.0.0", []) == ()
    assert allowed_hosts("0.0.0.0", ["photos.example"])


def test_keys_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n  {OTHER}\n")
    assert read_keys(file) == [KEY, OTHER]
    assert read_keys(None) == []
    for content, said in (("", "no key"), ("# none\n", "no key"), ("short\n", "16 characters")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=said):
            read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "missing")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\r\n# ours\r\n{OTHER}\r\n", encoding=encoding)  # As editors and shells of Windows write it.
    assert read_keys(file) == [KEY, OTHER]
    file.write_text(f"# ours\n{KEY}\n", encoding=encoding)
    assert read_keys(file) == [KEY]


@pytest.mark.parametrize(
    "key", ["ein-schlüssel-mit-umlaut", "a-key-with-\x7f-in-the-midst", "a-key-of-24-characters-\u200b"]
)
def test_keys_that_no_header_carries_are_refused(clip: LoadedBundle, tmp_path: Path, key: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{key}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"keys, line 2: a key consists of printable ASCII characters") as refused:
        read_keys(file)
    assert key not in str(refused.value)
    with pytest.raises(ConfigError, match="printable ASCII"):
        create_app(clip, keys=[key])
    with pytest.raises(ConfigError, match="printable ASCII"):
        Client("http://127.0.0.1:9", api_key=key)


def test_a_path_forges_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError(scope["path"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(_message: Message) -> None:
        pass

    guard = Guard(fails, limits=Limits(), counts=Counts())
    scope = {"type": "http", "method": "GET", "path": "/a\nERROR: owned \x1b]52;c;Y3VybA==\x07", "headers": []}
    with caplog.at_level(logging.ERROR):
        asyncio.run(guard(scope, receive, send))
    (record,) = caplog.records
    assert record.getMessage() == r"GET /a\nERROR: owned \x1b]52;c;Y3VybA==\x07 failed"
    assert "\x1b" not in VisibleFormatter("%(message)s").format(record)
