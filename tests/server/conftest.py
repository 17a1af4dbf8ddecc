"""A small model and an index of drawn pictures behind an address."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page

from diptych.index.protocol import Index
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import open_or_create, update
from diptych.server.app import create_app
from tests.server.browsing import opened
from tests.server.site import Site, served

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight pictures, some with captions beside them in the index."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(48):
        picture = Image.new("RGB", (48 + number, 40), "white")
        ImageDraw.Draw(picture).ellipse((4, 4, 20 + number // 2, 34), fill=COLOURS[number % 6])
        picture.save(folder / f"{COLOURS[number % 6]}-{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def index(clip: LoadedBundle, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Of those pictures."""
    with open_or_create(tmp_path_factory.mktemp("served") / "index", clip) as opened:
        update(opened, clip, [pictures])
        yield opened


@pytest.fixture(scope="session")
def site(clip: LoadedBundle, index: Index) -> Iterator[Site]:
    """A server with both, as it is by default."""
    with served(create_app(clip, index, hosts=("127.0.0.1", "localhost"))) as running:
        yield running


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """The search page, wide and light; it must not complain."""
    said: list[str] = []
    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        yield opened(context, said, site.url)
    assert said == []
