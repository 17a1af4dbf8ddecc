"""Diptych's own client gives what the bundle gives."""

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
