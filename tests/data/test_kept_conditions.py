"""What a listing and splits from the cache depend on beside the files themselves, and when nothing is kept."""

import os
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import PIL
import pytest

from diptych.core.array_cache import ArrayCache
from diptych.core.cache import is_settled
from diptych.core.file_states import file_states
from diptych.data.open_source import open_source
from diptych.data.sources import kept, listing, splits
from diptych.data.sources.copies import copy_groups
from diptych.data.sources.splits import Splits
from diptych.data.storage import tree
from diptych.data.storage.inputs import Inputs
from diptych.images import formats
from tests.conftest import draw_photos
from tests.data.makers import coco_folder, csv_file, keys_of, tsv_folder

_DAY_S = 86_400


@pytest.fixture(autouse=True)
def _small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache that keeps also little."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (kept, splits):
        monkeypatch.setattr(module, "MIN_ROWS", 2)


@contextmanager
def _later(seconds: float) -> Iterator[None]:
    """Within the block, clocks are ahead by so much."""
    now_ns, now = time.time_ns, time.time
    with (
        patch("time.time_ns", lambda: now_ns() + int(seconds * 1e9)),
        patch("time.time", lambda: now() + seconds),
    ):
        yield


@pytest.fixture
def settled() -> Iterator[None]:
    """All files of a test were written a minute ago."""
    with _later(60):
        yield


def _num_kept(kind: str) -> int:
    return len(list(ArrayCache().folder.glob(f"{kind}-*.npz")))


def _captioned(folder: Path, names: str) -> None:
    draw_photos(folder, [f"{name}.png" for name in names])
    for name in names:
        (folder / f"{name}.txt").write_text(f"one {name}")


@pytest.mark.usefixtures("settled")
def test_formats_that_can_be_opened_and_pillow_are_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _captioned(tmp_path / "set", "abc")
    (tmp_path / "set" / "c.png").rename(tmp_path / "set" / "c.webp")
    spec = f"text-folder:{tmp_path / 'set'}"
    with monkeypatch.context() as without_webp:
        without_webp.delitem(formats.FORMATS, ".webp")
        without_webp.setattr(tree, "IMAGE_SUFFIXES", frozenset(formats.FORMATS))
        assert keys_of(open_source(spec)) == ["a.png", "b.png"]
    assert keys_of(open_source(spec)) == ["a.png", "b.png", "c.webp"]
    assert keys_of(open_source(spec)) == ["a.png", "b.png", "c.webp"]
    assert _num_kept("listing") == 2
    monkeypatch.setattr(PIL, "__version__", "0.0")
    open_source(spec)
    assert _num_kept("listing") == 3


def _link_of_class(folder: Path) -> tuple[str, Path]:
    for name in ("cat", "dog"):
        draw_photos(folder / name, ["a.png", "b.png"])
    (folder / "bird").symlink_to(folder.parent / "disk")
    return f"class-folder:{folder}", folder.parent / "disk"


def _link_of_text(folder: Path) -> tuple[str, Path]:
    _captioned(folder, "abc")
    (folder / "c.txt").unlink()
    (folder / "c.txt").symlink_to(folder.parent / "disk" / "c.txt")
    return f"text-folder:{folder}", folder.parent / "disk"


def _link_of_metadata_folder(folder: Path) -> tuple[str, Path]:
    draw_photos(folder / "train", ["a.png", "b.png"])
    (folder / "train" / "metadata.csv").write_text("file_name,text\na.png,one\nb.png,two\n")
    (folder / "val").symlink_to(folder.parent / "disk")
    return f"image-folder:{folder}", folder.parent / "disk"


def _link_of_metadata(folder: Path) -> tuple[str, Path]:
    _link_of_metadata_folder(folder)
    (folder / "train" / "metadata.jsonl").symlink_to(folder.parent / "disk" / "metadata.jsonl")
    return f"image-folder:{folder}/train", folder.parent / "disk"


def _link_of_images(folder: Path) -> tuple[str, Path]:
    spec = tsv_folder(folder)
    for path in (folder / "images").iterdir():
        path.rename(folder / path.name)
    (folder / "images").rmdir()
    (folder / "images").symlink_to(folder.parent / "disk")
    return spec, folder.parent / "disk"


def _link_of_coco_images(folder: Path) -> tuple[str, Path]:
    spec = coco_folder(folder)
    (folder / "images").mkdir()
    (folder / "val2017").rename(folder / "images" / "val2017")
    (folder / "val2017").symlink_to(folder.parent / "disk")
    return spec, folder.parent / "disk"


_LINKS: list[Callable[[Path], tuple[str, Path]]] = [
    _link_of_class,
    _link_of_text,
    _link_of_metadata_folder,
    _link_of_metadata,
    _link_of_images,
    _link_of_coco_images,
]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("make", _LINKS)
def test_the_target_of_a_link_that_appears_later_is_noticed(
    make: Callable[[Path], tuple[str, Path]], tmp_path: Path
) -> None:
    spec, disk = make(tmp_path / "set")
    before = _facts(spec)
    assert _facts(spec) == before
    assert _num_kept("listing") == 1
    draw_photos(disk, [f"{name}.png" for name in "abcd"])
    (disk / "c.txt").write_text("one c")
    for name in ("metadata.jsonl", "metadata.csv"):
        (disk / name).write_text(
            "file_name,text\na.png,3\n" if name.endswith("csv") else '{"file_name": "b.png", "text": "3"}'
        )
    after = _facts(spec)
    shutil.rmtree(tmp_path / "cache")
    assert after == _facts(spec) != before


def _facts(spec: str) -> list[object]:
    source = open_source(spec)
    return [(source.key(i), source[i].image, source.captions(i)) for i in range(len(source))]


def test_what_may_have_changed_while_it_was_read_is_not_kept(tmp_path: Path) -> None:
    """The clock moves on by a minute while the table is read, and while the splits are cut."""
    spec = csv_file(tmp_path / "set")
    minutes = [_later(60) for _ in range(2)]

    def slow(read: Callable[..., object], minute: int) -> Callable[..., object]:
        def slower(*args: object, **options: object) -> object:
            minutes[minute].__enter__()
            return read(*args, **options)

        return slower

    with patch.object(listing, "images_there", slow(listing.images_there, 0)):
        source = open_source(spec)
    minutes[0].__exit__(None, None, None)
    with patch.object(splits, "copy_groups", slow(copy_groups, 1)):
        Splits(source)
    minutes[1].__exit__(None, None, None)
    assert (_num_kept("listing"), _num_kept("splits")) == (0, 0)
    with _later(60):
        Splits(open_source(spec))
    assert (_num_kept("listing"), _num_kept("splits")) == (1, 1)


def test_files_with_a_time_of_tomorrow_are_kept_once_they_were_left_alone(tmp_path: Path) -> None:
    spec = csv_file(tmp_path / "set")
    picture = tmp_path / "set" / "a.png"
    tomorrow = time.time() + _DAY_S
    for path in (picture, tmp_path / "set.tsv"):
        os.utime(path, (tomorrow, tomorrow))
    assert not file_states([str(picture)]).is_settled()
    assert not is_settled(picture)
    with _later(60):
        assert is_settled(picture)
        Splits(open_source(spec))
        assert (_num_kept("listing"), _num_kept("splits")) == (1, 1)
    os.utime(picture, (tomorrow, tomorrow))
    with _later(60):
        Splits(open_source(spec))
    assert _num_kept("splits") == 2, "the time of the last change of metadata was set anew"


def test_a_source_is_read_in_a_working_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = csv_file(tmp_path / "set")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert len(open_source(spec)) == 4
    assert len(open_source("shapes:4")) > 0


def test_a_path_that_is_read_takes_little_more_than_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    inputs = Inputs()
    inputs.add(path)
    tracemalloc.start()
    try:
        for _ in range(1000):
            inputs.add(path)
        num_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert num_bytes < 1000 * (len(str(path)) + 100)
    assert len(inputs.states()) == len(inputs.paths) == 1001
