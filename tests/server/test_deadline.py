"""Deadlines hold whatever a request waits for; one bad item in a batch fails alone; SIGTERM ends the process."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from diptych.index.protocol import Index
from diptych.inference import explain
from diptych.inference.embedder import Embedder
from diptych.inference.loaded import LoadedBundle
from diptych.server import engine as engines
from diptych.server.app import create_app
from diptych.server.limits import Limits
from tests.server.makers import coded, jpeg
from tests.server.site import Site, served

HELD = threading.Event()


@pytest.fixture
def stuck(
    clip: LoadedBundle, index: Index, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Site]:
    """A server of which one function waits until `HELD` is set."""
    name: str = request.param
    HELD.clear()
    original: Callable[..., Any] = getattr(engines.Engine, name, None) or getattr(clip.bundle.tokenizer, name)
    is_warm = name != "_embed_texts"

    def waits(*args: Any) -> Any:
        nonlocal is_warm
        if is_warm:
            HELD.wait(30)
        is_warm = True
        return original(*args)

    if hasattr(engines.Engine, name):
        monkeypatch.setattr(engines.Engine, name, waits)
    else:
        monkeypatch.setattr(type(clip.bundle.tokenizer), name, waits)
    try:
        with served(create_app(clip, index, limits=Limits(deadline_s=0.3))) as site:
            yield site
    finally:
        HELD.set()


@pytest.mark.parametrize(
    ("stuck", "path", "body", "threads"),
    [
        ("_embed_texts", "/v1/embed", {"texts": ["a"]}, "texts"),
        ("_embed_images", "/v1/embed", {"images": [coded(jpeg())]}, "images"),
        ("_search", "/v1/search", {"text": "a"}, "index"),
    ],
    indirect=["stuck"],
)
def test_a_stuck_call_is_answered_and_reported(stuck: Site, path: str, body: Any, threads: str) -> None:
    assert any(stuck.ask("GET", "/readyz").status == 200 for _ in range(50))  # The first reading may miss 0.3 s.
    assert stuck.ask("POST", path, body).status == 503
    time.sleep(0.05)
    assert stuck.ask("POST", path, body).status == 503  # It waits behind the first.
    ready = stuck.ask("GET", "/readyz")
    assert ready.status == 503
    assert f"a thread for {threads}" in ready.json["detail"]
    assert stuck.ask("GET", "/healthz").status == 200
    HELD.set()
    # A busy machine may need more than 0.3 s for an answer.
    assert any(stuck.ask("POST", path, body).status == 200 for _ in range(50))
    assert any(stuck.ask("GET", "/readyz").status == 200 for _ in range(50))


def test_everything_else_is_held_to_the_deadline(
    clip: LoadedBundle, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heat map, thumbnail, an entry of the index and the parsing of a large body."""
    from diptych.server import parse_body, thumbnails

    held = threading.Event()

    def waits(*_args: Any, **_more: Any) -> Any:
        held.wait(30)
        raise RuntimeError

    monkeypatch.setattr(explain, "explain_pixels", waits)
    monkeypatch.setattr(parse_body, "_parse", waits)
    key = next(iter(index.search(clip.encode_texts(["a"]), top=1)[0])).entry.digest
    try:
        with served(create_app(clip, index, limits=Limits(deadline_s=0.3))) as site:
            assert site.ask("GET", f"/v1/images/{key}/heat?text=a").status == 503
            assert site.ask("POST", "/v1/embed", {"texts": ["a" * 1000] * 300}).status == 503
            monkeypatch.setattr(thumbnails, "_read", waits)
            assert site.ask("GET", f"/v1/images/{key}/thumb?px=160").status == 503
            monkeypatch.setattr(type(index), "with_digest", waits)
            assert site.ask("GET", f"/v1/images/{key}").status == 503
            assert site.ask("GET", "/readyz").status == 503
    finally:
        held.set()


def test_one_bad_search_fails_alone(clip: LoadedBundle, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(index).search

    def search(self: Any, vectors: Any, **how: Any) -> Any:
        if how["top"] == 8:
            raise MemoryError
        return original(self, vectors, **how)

    monkeypatch.setattr(type(index), "search", search)
    with served(create_app(clip, index, limits=Limits(window_ms=200))) as site, ThreadPoolExecutor(8) as many:
        limits = [3, 7, 3, 4, 7, 3, 3, 3]  # One more is asked for than is shown.
        found = many.map(lambda limit: site.ask("POST", "/v1/search", {"text": "a", "limit": limit}).status, limits)
        assert list(found) == [500 if limit == 7 else 200 for limit in limits]


def test_one_bad_picture_fails_alone(clip: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read, encode, bad = Embedder.pixels, Embedder.encode_pixels, jpeg()
    sizes: list[int] = []

    def reading(self: Any, image: Any) -> Any:
        if image == bad:
            raise OverflowError
        return read(self, image)

    def encoding(self: Any, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(Embedder, "pixels", reading)
    monkeypatch.setattr(Embedder, "encode_pixels", encoding)
    with served(create_app(clip, limits=Limits(window_ms=1000))) as site, ThreadPoolExecutor(6) as many:
        contents = [bad if number == 2 else jpeg() for number in range(6)]
        found = many.map(lambda one: site.ask("POST", "/v1/embed", {"images": [coded(one)]}).status, contents)
        assert list(found) == [500 if one == bad else 200 for one in contents]
    assert max(sizes) > 1


_STUCK_SERVER = """
import sys, threading, time
from diptych.server import run
from diptych.server.workers import Workers

run.EXIT_S = 1
stuck = Workers("stuck")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if "lifespan" in sys.argv:
            await __import__("asyncio").sleep(60)
        await send({"type": "lifespan.shutdown.complete"})
        return
    import asyncio
    await asyncio.get_running_loop().run_in_executor(stuck, time.sleep, 60)

bound = run.bind_socket("127.0.0.1", 0)
print(run.base_url(bound), flush=True)
if "thread" in sys.argv:
    threading.Thread(target=time.sleep, args=(60,)).start()
run.serve(app, bound, drain_s=1)
print("stopped")
run.exit_if_stuck()
"""


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["worker", "lifespan", "thread"])
def test_sigterm_ends_the_process_whatever_waits(reason: str) -> None:
    """A worker that never returns, an application that does not shut down, and a thread that the interpreter would join."""
    with subprocess.Popen(
        [sys.executable, "-c", _STUCK_SERVER, reason], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        site = Site(process.stdout.readline().strip())
        threading.Thread(target=_ask_in_vain, args=(site,), daemon=True).start()
        time.sleep(0.5)
        process.terminate()
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert ("stopped" in said) == (reason != "lifespan")


def _ask_in_vain(site: Site) -> None:
    with suppress(OSError):
        site.ask("GET", "/")
