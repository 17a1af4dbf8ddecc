"""Flickr's sets fetched by the real kagglehub, from a server that stands in for Kaggle's."""

import io
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kagglesdk import kaggle_env

from diptych.core.errors import ConfigError, DataError
from diptych.data.open_source import open_source, recognise
from tests.conftest import draw_photos

NAMES = ["1.jpg", "2.jpg", "3.jpg"]


class _Kaggle(BaseHTTPRequestHandler):
    sets: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = f"{request['ownerSlug']}/{request['datasetSlug']}"
        self.asked.append(f"{self.path.rpartition('/')[2]} {name} {request['datasetVersionNumber']}")
        content = self.sets.get(name)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Kaggle]]:
    """Kaggle with nothing on it yet."""

    class Handler(_Kaggle):
        sets: dict[str, bytes] = {}  # noqa: RUF012  (filled by the tests)
        asked: list[str] = []  # noqa: RUF012

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, endpoint)
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Handler
    http.shutdown()
    http.server_close()


def _zip(folder: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder))
    return content.getvalue()


@pytest.fixture
def flickr30k(tmp_path: Path) -> Path:
    """Kaggle's tree: a folder in a folder of the same name, and the table between them."""
    root = tmp_path / "dump"
    draw_photos(root / "flickr30k_images" / "flickr30k_images", NAMES)
    rows = [f"{name}| {i}| Photo {name[0]}, caption {i} .\n" for name in NAMES for i in range(2)]
    table = root / "flickr30k_images" / "results.csv"
    table.write_text("image_name| comment_number| comment\n" + "".join(rows), "utf-8")
    return root


@pytest.mark.parametrize("spec", ["flickr30k", "flickr30k:"])
def test_flickr30k_is_fetched_once(
    kaggle: type[_Kaggle], flickr30k: Path, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.sets["hsankesara/flickr-image-dataset"] = _zip(flickr30k)
    for _ in range(2):
        source = open_source(spec)
        assert [source.key(i) for i in range(3)] == NAMES
        assert source.captions(1) == ("Photo 2, caption 0 .", "Photo 2, caption 1 .")
    assert kaggle.asked == ["DownloadDataset hsankesara/flickr-image-dataset 1"]
    assert capsys.readouterr().out == ""


def test_flickr8k_is_fetched(kaggle: type[_Kaggle], tmp_path: Path) -> None:
    draw_photos(tmp_path / "dump" / "Images", NAMES)
    (tmp_path / "dump" / "captions.txt").write_text(
        "image,caption\n" + "".join(f"{n},of {n}\n" for n in NAMES), "utf-8"
    )
    kaggle.sets["adityajn105/flickr8k"] = _zip(tmp_path / "dump")
    source = open_source("flickr8k")
    assert [source.captions(i) for i in range(3)] == [(f"of {name}",) for name in NAMES]


def test_the_tree_as_it_is_downloaded_by_hand(flickr30k: Path) -> None:
    for root in (flickr30k, flickr30k / "flickr30k_images"):
        assert len(open_source(f"flickr30k:{root}")) == 3
        assert recognise(root) == "flickr30k"


def test_several_dumps_in_one_folder_are_told_apart(flickr30k: Path) -> None:
    (flickr30k / "other").mkdir()
    (flickr30k / "other" / "captions.txt").write_text("image,caption\n", "utf-8")
    with pytest.raises(DataError, match=r"several folders hold captions; name one: .*flickr30k_images, .*other"):
        open_source(f"flickr30k:{flickr30k}")


def test_a_folder_called_like_the_kind_is_not_fetched(
    kaggle: type[_Kaggle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flickr30k").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="write flickr30k:flickr30k to read it, flickr30k: to fetch"):
        open_source("flickr30k")
    assert kaggle.asked == []


def test_what_cannot_be_fetched_is_one_line(kaggle: type[_Kaggle], monkeypatch: pytest.MonkeyPatch) -> None:
    way_out = r"download and unpack https://www\.kaggle\.com/datasets/adityajn105/flickr8k, then give its folder: flickr8k:DIR$"
    with pytest.raises(DataError, match=rf"flickr8k: cannot be fetched \(404 .*\); {way_out}") as caught:
        open_source("flickr8k")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=rf"flickr8k: cannot be fetched \(.*; {way_out}"):
        open_source("flickr8k")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ConfigError, match=r"pip install 'diptych\[kaggle\]'"):
        open_source("flickr30k")
