"""Pictures as users hand them over: folders, generators, URLs; and the bar that shows how far the work is."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diptych.core import progress, remote
from diptych.core.errors import DiptychError, ImageError
from diptych.core.sample import ImageInput
from diptych.inference.loaded import LoadedBundle, load
from diptych.inference.query import Query, Term, parse_query
from tests.folder_server import Server


def test_a_folder_stands_for_its_pictures(clip: LoadedBundle, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    told: list[str] = []
    result = clip.similarity(photos, ["red"], on_error=lambda name, error: told.append(f"{name}: {error}"))
    assert [Path(name).name for name in result.images] == ["a.png", "b.png", "c.png", "d.png", "e.png", "f.jpg"]
    assert result.cosine.shape == (6, 1)
    assert len(told) == 1
    assert "broken.jpg" in told[0]
    answers = clip.classify(str(photos), ["red circle", "blue square"], on_error=lambda *_: None)
    assert [answer.image for answer in answers] == list(result.images)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        clip.similarity(photos, ["red"])
    with pytest.raises(DiptychError, match="not several: write"):
        clip.similarity(photos / "a.png", ["red"])


def test_generators_go_through_all_functions_and_are_not_kept(tiny_bundle: Path, photos: Path) -> None:
    clip = load(tiny_bundle, device="cpu", batch_size=4)
    held = 0

    class Picture(bytes):
        def __new__(cls, content: bytes) -> "Picture":
            nonlocal held
            held += 1
            return super().__new__(cls, content)

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    most = 0

    def many() -> Iterator[ImageInput]:
        nonlocal most
        content = (photos / "a.png").read_bytes()
        for _ in range(60):
            most = max(most, held)
            yield Picture(content)

    assert clip.similarity(many(), ["red"]).cosine.shape == (60, 1)
    assert len(clip.classify(many(), ["red", "blue"])) == 60
    assert len(clip.rank_images("red", many(), top=7).results) == 7
    assert most <= 3 * 4  # Two chunks, and the one that is being handed out.


def test_queries_in_the_four_functions(clip: LoadedBundle, photos: Path) -> None:
    query = parse_query(f'"red" + 0.5*{photos / "a.png"} - "blue"')
    (expected,) = clip.encode_queries([query])
    images = sorted(photos.glob("*.png"))
    emb = clip.encode_images(images)
    np.testing.assert_allclose(clip.similarity(images, [query, "red"]).cosine[:, 0], emb @ expected, atol=1e-5)
    ranking = clip.rank_images(query, images)
    assert [result.position for result in ranking.results] == np.argsort(-(emb @ expected)).tolist()
    assert ranking.query == str(query) == f"red + 0.5*{photos / 'a.png'} - blue"
    texts = ["a red circle", "a blue square"]
    both = clip.rank_texts(query, texts)
    cosine = clip.encode_texts(texts) @ expected
    assert [result.position for result in both.results] == np.argsort(-cosine).tolist()
    array = np.zeros((8, 8, 3), np.uint8)
    assert str(Query((Term(kind="image", value=array, weight=-2),))) == "- 2*<array 8x8x3>"


def test_urls_are_read_where_one_says_so(
    tiny_bundle: Path, photos: Path, clip: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_WAIT_S", 0.01)
    server = Server(photos)
    url = f"{server.url}/a.png"
    with pytest.raises(ImageError, match=re.escape(f"{url}: is a URL, and those are read only where you say so")):
        clip.encode_images([url])
    assert server.fetched() == []
    reader = load(tiny_bundle, device="cpu", urls=True)
    np.testing.assert_allclose(reader.encode_images([url]), clip.encode_images([photos / "a.png"]), atol=1e-6)
    np.testing.assert_allclose(
        reader.encode_queries([parse_query(f"{url} - 0.1*blue")]),
        clip.encode_queries([parse_query(f"{photos / 'a.png'} - 0.1*blue")]),
        atol=1e-5,
    )
    with pytest.raises(ImageError, match=r"gone\.png: no such file, or its server cannot be reached"):
        reader.encode_images([f"{server.url}/gone.png"])
    monkeypatch.setattr("diptych.inference.embedder._MAX_URL_BYTES", 10)
    with pytest.raises(ImageError, match="is larger than"):
        reader.encode_images([url])
    server.close()


def test_a_bar_shows_after_two_seconds_and_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> str:
        with progress.bar("pictures", 3) as advance:
            for _ in range(3):
                advance()
        return capsys.readouterr().err

    assert work() == ""
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    assert work() == ""
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.0)
    assert "pictures" in work()
