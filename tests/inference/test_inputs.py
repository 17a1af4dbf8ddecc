"""Pictures as users hand them over: folders, generators, URLs; and the bar that shows how far the work is."""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageSequence

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


def _saved(path: Path, form: str, *, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    compression = {"compression": "tiff_lzw"} if form == "TIFF" else {}
    Image.fromarray(noise).save(path, form, exif=exif, **compression)
    return path


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "GIF"])
def test_one_image_that_is_not_yet_loaded_may_stand_in_a_list_several_times(
    clip: LoadedBundle, tmp_path: Path, form: str
) -> None:
    path = _saved(tmp_path / "one", form, orientation=1 if form == "GIF" else 6)
    expected = clip.encode_images([path] * 8)
    for _ in range(20):
        with Image.open(path) as image:
            np.testing.assert_array_equal(clip.encode_images([image] * 8), expected)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "GIF"])
def test_an_image_that_cannot_be_loaded_fails_each_time(clip: LoadedBundle, tmp_path: Path, form: str) -> None:
    content = _saved(tmp_path / "one", form).read_bytes()
    third = len(content) // 3
    damaged = content[: 2 * third] if form == "JPEG" else content[:third] + bytes(third) + content[2 * third :]
    whole, told = Image.new("RGB", (40, 30), "red"), list[int]()
    with Image.open(io.BytesIO(damaged)) as broken:
        emb = clip.embedder.encode_images(
            [broken, whole, broken, broken, whole, broken] * 4, on_error=lambda position, _: told.append(position)
        )
        assert told == [position for position in range(24) if position % 6 not in {1, 4}]
        np.testing.assert_array_equal(np.isnan(emb[:, 0]).nonzero()[0], told)
        with pytest.raises(ImageError, match="400x300>: cannot be decoded"):
            clip.encode_images([whole, broken])


def test_an_image_may_be_closed_or_changed_once_the_next_one_is_asked_for(clip: LoadedBundle, tmp_path: Path) -> None:
    path = _saved(tmp_path / "one.png", "PNG")

    def closed() -> Iterator[Image.Image]:
        for _ in range(30):
            image = Image.open(path)
            yield image
            image.close()

    np.testing.assert_array_equal(clip.encode_images(closed()), clip.encode_images([path] * 30))

    frames = [Image.new("RGB", (40, 30), (8 * number, 0, 255 - 8 * number)) for number in range(30)]
    each = clip.encode_images(frames)
    assert len(np.unique(each, axis=0)) == 30
    buffer = np.zeros((30, 40, 3), dtype=np.uint8)

    def drawn() -> Iterator[np.ndarray[Any, Any]]:
        for frame in frames:
            buffer[:] = np.asarray(frame)
            yield buffer

    np.testing.assert_array_equal(clip.encode_images(drawn()), each)
    animation = tmp_path / "frames.gif"
    frames[0].save(animation, save_all=True, append_images=frames[1:])
    with Image.open(animation) as opened:
        np.testing.assert_array_equal(clip.encode_images(ImageSequence.Iterator(opened)), each)
