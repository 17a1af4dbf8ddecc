"""Diptych's own client gives what the bundle gives."""

import base64
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.core.errors import ConfigError, DiptychError, ImageError
from diptych.core.sample import ImageInput
from diptych.inference.loaded import LoadedBundle
from diptych.server.app import create_app
from diptych.server.limits import Limits
from tests.server.site import Site, served


@pytest.fixture(scope="module")
def far(site: Site) -> diptych.Client:
    return diptych.Client(site.url)


def test_the_four_functions_give_what_the_bundle_gives(far: diptych.Client, clip: LoadedBundle, pictures: Path) -> None:
    some = sorted(pictures.iterdir())[:20]
    texts = ["a red circle", "a blue circle"]
    near, there = clip.similarity(some, texts), far.similarity(some, texts)
    assert there.images == near.images
    np.testing.assert_allclose(there.cosine, near.cosine, atol=1e-6)
    np.testing.assert_allclose(there.probability, near.probability, atol=1e-6)
    for mine, theirs in zip(clip.classify(some, ["red", "blue"]), far.classify(some, ["red", "blue"]), strict=True):
        assert [score.name for score in mine.scores] == [score.name for score in theirs.scores]
    query = diptych.parse_query('"a red circle" - 0.5*"blue"')
    assert [one.item for one in far.rank_images(query, pictures, top=5).results] == [
        one.item for one in clip.rank_images(query, pictures, top=5).results
    ]
    assert [one.item for one in far.rank_texts(some[0], texts).results] == [
        one.item for one in clip.rank_texts(some[0], texts).results
    ]


def test_pictures_in_memory_are_sent(far: diptych.Client, clip: LoadedBundle) -> None:
    images: list[ImageInput] = [Image.new("RGB", (40, 30), "red"), np.zeros((20, 20, 3), dtype=np.uint8)]
    np.testing.assert_allclose(far.encode_images(images), clip.encode_images(images), atol=1e-6)
    assert far.encode_images([]).shape == (0, 16)


def test_one_thing_is_no_list(far: diptych.Client, clip: LoadedBundle) -> None:
    picture = Image.new("RGB", (40, 30), "red")
    calls: list[Callable[[Any], object]] = [
        lambda one: one.encode_images("x.jpg"),
        lambda one: one.encode_texts("a dog"),
        lambda one: one.similarity([picture], "a dog"),
        lambda one: one.classify([picture], "dog"),
        lambda one: one.rank_texts(picture, "a dog"),
    ]
    for call in calls:
        for one in (far, clip):
            with pytest.raises(DiptychError, match=r"(images|texts|classes) is one str, not several: write \["):
                call(one)


@pytest.fixture(scope="module")
def photos_of_2_mb(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("large")
    noise = np.random.default_rng(0).integers(0, 256, (16, 1200, 1200, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=98)
    paths = sorted(folder.iterdir())
    assert all(path.stat().st_size > 2_000_000 for path in paths)
    return paths


def test_photos_of_a_phone_are_sent(far: diptych.Client, clip: LoadedBundle, photos_of_2_mb: list[Path]) -> None:
    """All sixteen in one request have 46 MB, and a server takes 32 MiB."""
    np.testing.assert_allclose(far.encode_images(photos_of_2_mb), clip.encode_images(photos_of_2_mb), atol=1e-6)


def test_requests_fit_the_servers_limit(
    far: diptych.Client, clip: LoadedBundle, photos_of_2_mb: list[Path], tmp_path: Path
) -> None:
    some = photos_of_2_mb[:3]
    texts = [f"{number} " + "ü" * 3900 for number in range(100)]  # Six bytes a letter in JSON: 2.3 MB.
    small = tmp_path / "small.png"
    Image.new("RGB", (40, 30), "red").save(small)
    with served(create_app(clip, limits=Limits(body_mb=6))) as site:
        near = diptych.Client(site.url)
        np.testing.assert_allclose(near.encode_images(some), clip.encode_images(some), atol=1e-6)
    with served(create_app(clip, limits=Limits(body_mb=1))) as site:
        near = diptych.Client(site.url)
        np.testing.assert_allclose(near.encode_texts(texts), far.encode_texts(texts), atol=1e-6)
        with pytest.raises(ImageError, match=r"00\.jpg: is too large for one request \(1 MiB.*--body-mb"):
            near.encode_images([small, some[0]])
        told = list[int]()
        emb = near.encode_images([some[0], small], on_error=lambda position, error: told.append(position))
        assert told == [0]
        assert np.isnan(emb[0]).all()
        np.testing.assert_allclose(emb[1], clip.encode_images([small])[0], atol=1e-6)


class _Narrow(BaseHTTPRequestHandler):
    """A proxy that accepts few bytes: it refuses more, or ends the connection without an answer."""

    sizes: ClassVar[list[int]] = []
    most: ClassVar[int]
    is_rude: ClassVar[bool]

    def do_GET(self) -> None:
        self._answer(200, b'{"dim": 1}')

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.sizes.append(size)
        if size > self.most and self.is_rude:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        texts = json.loads(self.rfile.read(size))["texts"]
        rows = [base64.b64encode(np.array([len(text)], dtype="<f4").tobytes()).decode() for text in texts]
        if size > self.most:
            self._answer(413, b"<html>")
        else:
            self._answer(200, json.dumps({"texts": rows}).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


@pytest.mark.parametrize("is_rude", [False, True])
def test_what_is_too_large_for_a_proxy_is_halved(monkeypatch: pytest.MonkeyPatch, is_rude: bool) -> None:
    most = 300_000
    for name, value in (("is_rude", is_rude), ("sizes", []), ("most", most)):
        monkeypatch.setattr(_Narrow, name, value, raising=False)
    lengths = [100_000, 1, 250_000, 2, 100_000, 100_000, 3]
    texts = ["x" * length for length in lengths]
    with HTTPServer(("127.0.0.1", 0), _Narrow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        far = diptych.Client(f"http://127.0.0.1:{server.server_port}")
        assert far.encode_texts(texts).ravel().tolist() == lengths
        assert max(_Narrow.sizes) > most
        first = len(_Narrow.sizes)
        assert far.encode_texts(texts).ravel().tolist() == lengths
        assert max(_Narrow.sizes[first:]) <= most  # The limit is remembered.
        with pytest.raises(DiptychError, match="does not answer" if is_rude else "answered 413"):
            far.encode_texts(["a", "x" * (most + 1)])
        server.shutdown()


def test_search(far: diptych.Client, index: object) -> None:
    found = far.search(diptych.parse_query("a red circle"), limit=3, where="width > 50")
    assert len(found) == 3
    assert all(hit.width is not None and hit.width > 50 for hit in found)
    assert far.search("a red circle", limit=3, offset=1)[0] == far.search("a red circle", limit=3)[1]


def test_broken_pictures_are_found_out_before_they_are_sent(
    far: diptych.Client, pictures: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    told = []
    found = far.similarity([broken, min(pictures.iterdir())], ["a"], on_error=lambda name, error: told.append(name))
    assert told == [str(broken)]
    assert found.cosine.shape == (1, 1)
    with pytest.raises(ImageError, match="broken"):
        far.similarity([broken], ["a"])


def test_what_the_server_says_is_told(far: diptych.Client, clip: LoadedBundle) -> None:
    with pytest.raises(DiptychError, match="colour"):
        far.search("a", where="colour = 3")
    with pytest.raises(DiptychError, match="does not answer"):
        _ = diptych.Client("http://127.0.0.1:9").info
    with pytest.raises(ConfigError, match="http"):
        diptych.Client("127.0.0.1:8000")
    key = "a-key-of-24-characters-a"
    with served(create_app(clip, keys=[key])) as locked:
        with pytest.raises(DiptychError, match="key"):
            diptych.Client(locked.url).encode_texts(["a"])
        assert diptych.Client(locked.url, api_key=key).encode_texts(["a"]).shape == (1, 16)


class _Busy(BaseHTTPRequestHandler):
    """Sends the first two away."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        is_busy = len(self.asked) <= 2
        content = b'{"detail": "too many"}' if is_busy else b'{"logit_scale": 3.5}'
        self.send_response(429 if is_busy else 200)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


@pytest.fixture
def busy() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_busy_server_is_asked_again(busy: str) -> None:
    assert diptych.Client(busy).logit_scale == 3.5
    assert len(_Busy.asked) == 3
