"""CIFAR's official files, small copies of them, and files that only look like them."""

import hashlib
import io
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.core.errors import DataError
from diptych.data.open_source import open_source
from diptych.data.sources import cifar as cifar_module
from diptych.data.sources.cifar import CIFAR10, CIFAR100, Cifar
from diptych.images.decode import decode
from tests.conftest import draw_photos
from tests.data.makers import CIFARS, binary_files, cifar_archive, cifar_pixels, python_files


@pytest.mark.parametrize("kind", list(CIFARS))
@pytest.mark.parametrize("make", [python_files, binary_files])
@pytest.mark.parametrize("packing", ["folder", "folder above", "archive"])
def test_every_official_form(kind: str, make: Callable[[Cifar, Path], Path], packing: str, tmp_path: Path) -> None:
    folder = make(CIFARS[kind], tmp_path / "batches")
    place = {"folder": folder, "folder above": tmp_path, "archive": cifar_archive(folder)}[packing]
    source = open_source(f"{kind}:{place}")
    num_train = 10 if kind == "cifar10" else 2
    assert len(source) == num_train + 2
    assert source.classes == ("airplane", "aquarium fish", "bear")
    assert [source.split(i) for i in (0, num_train)] == ["train", "test"]
    assert (source.key(1), source.key(num_train)) == ("train/00001", "test/00000")
    sample = source[1]
    assert sample.label == 2
    assert sample.captions[0] == "a photo of a bear"
    expected = cifar_pixels(0)[1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(decode(sample.image)), expected)
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(decode(again[1].image)), expected)


def test_class_folders_will_do(tmp_path: Path) -> None:
    for name in ("dog", "frog"):
        draw_photos(tmp_path / "train" / name, ["a.png"])
    assert open_source(f"cifar10:{tmp_path}").captions(0)[0] == "a photo of a dog"


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (os.system, (f"touch {self.path}",))  # type: ignore[return-value]


def test_a_folder_that_holds_the_set_as_one_archive_will_do(tmp_path: Path) -> None:
    for name in ("dog", "frog"):
        draw_photos(tmp_path / "set" / "train" / name, ["1.png"])
    shutil.make_archive(str(tmp_path / "here" / "cifar10_mine"), "zip", tmp_path / "set")
    assert open_source(f"cifar10:{tmp_path / 'here'}").captions(0)[0] == "a photo of a dog"
    templates = tmp_path / "templates.txt"
    templates.write_text("see the {}")
    assert open_source(f"cifar10:{tmp_path / 'here'}?templates={templates}").captions(0) == ("see the dog",)


def test_no_code_of_a_pickle_is_run(tmp_path: Path) -> None:
    folder = python_files(CIFAR10, tmp_path / "batches")
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": _Evil(tmp_path / "ran")}, protocol=2))
    with pytest.raises(DataError, match=r"it names posix\.system, which is no part of an array"):
        open_source(f"cifar10:{folder}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps({b"data": 3})])
def test_damaged_batches(content: bytes, tmp_path: Path) -> None:
    folder = python_files(CIFAR10, tmp_path / "batches")
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match="is not cifar10's"):
        open_source(f"cifar10:{folder}")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = binary_files(CIFAR10, tmp_path / "batches")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin of cifar10 is missing"):
        open_source(f"cifar10:{folder}")
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(f"cifar10:{tmp_path}/gone")
    with pytest.raises(DataError, match=r"holds neither batches\.meta nor batches\.meta\.txt of cifar10"):
        open_source(f"cifar10:{cifar_archive(python_files(CIFAR100, tmp_path / 'other'))}")


def test_an_archive_that_is_called_as_the_official_one_must_be_it(tmp_path: Path) -> None:
    path = cifar_archive(python_files(CIFAR10, tmp_path / "batches"), "cifar-10-python.tar.gz")
    with pytest.raises(DataError, match=r"is damaged or incomplete; its MD5 is not c58f30108f718f92721af3b95e74349a"):
        open_source(f"cifar10:{path}")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def test_without_a_location_it_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    path = cifar_archive(python_files(CIFAR10, tmp_path / "batches"), "cifar-10-python.tar.gz")
    path = path.rename(tmp_path / "there" / path.name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path / "there")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DIPTYCH_CIFAR_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="the downloaded file is not the official one"):
        open_source("cifar10")
    assert not list((tmp_path / "cache" / "diptych").iterdir())
    checksums = {path.name: hashlib.md5(path.read_bytes()).hexdigest()}
    known = {**CIFAR10.__dict__, "checksums": checksums}
    monkeypatch.setattr(cifar_module, "CIFAR10", Cifar(**known))
    assert len(open_source("cifar10")) == 12
    server.shutdown()
    server.server_close()
    assert len(open_source("cifar10")) == 12  # From the cache.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"cannot be fetched .*; download it yourself and use cifar10:PATH"):
        open_source("cifar10")


def test_a_broken_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(io.BytesIO(b"no archive").getvalue())
    with pytest.raises(DataError, match="cannot be read as a tar"):
        open_source(f"cifar10:{tmp_path}/x.tar.gz")
