"""What `index verify` finds damaged, the next `index add` makes again."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.cli.main import main
from diptych.index import build_signs
from diptych.index.checksums import hash_block
from diptych.index.local import LocalIndex
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import open_or_create, update
from tests.conftest import draw_photos
from tests.makers import flip_bit


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, clip: LoadedBundle) -> Path:
    """Eight pictures in two folders, and their index, made by three additions, with a structure."""
    root = tmp_path_factory.mktemp("original")
    draw_photos(root / "photos", [f"{name}.png" for name in "abcde"])
    draw_photos(root / "photos" / "more", ["f.jpg"])
    draw_photos(root / "later", [f"{number}.png" for number in range(8)])
    for number in range(6):  # Of the others, these are copies.
        (root / "later" / f"{number}.png").unlink()
    with open_or_create(root / "index", clip) as index, pytest.MonkeyPatch.context() as patch:
        for folder in (root / "photos" / "more", root / "photos", root / "later"):
            update(index, clip, [folder])
        with index.writing():
            patch.setattr(build_signs, "MIN_SPEEDUP", 0)  # So few are faster without.
            index.build("signs")
    return root


@pytest.fixture
def photos(original: Path) -> Path:
    """The folder of six of them."""
    return original / "photos"


@pytest.fixture
def place(original: Path, tmp_path: Path) -> str:
    """A copy of the index, to be damaged."""
    return str(shutil.copytree(original / "index", tmp_path / "index"))


def _drop_row(folder: Path) -> None:
    database = sqlite3.connect(folder / "index.db")
    with database:
        database.execute("DELETE FROM vectors WHERE place = 2")
    database.close()


_DAMAGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "a short vector file": (lambda folder: _cut(folder / "vectors-0.f32"), 2),
    "no vector file": (lambda folder: (folder / "vectors-0.f32").unlink(), 8),
    "an empty vector file": (lambda folder: (folder / "vectors-0.f32").write_bytes(b""), 8),
    "a bit of a vector": (lambda folder: flip_bit(folder / "vectors-0.f32", 8 * 10), 1),
    "a missing vector": (_drop_row, 1),
    "a bit of the codes": (lambda folder: flip_bit(folder / "codes-1.i8", 8 * 10), 0),
    "no codes": (lambda folder: (folder / "codes-1.f32").unlink(), 0),
    "no structure": (lambda folder: (folder / "nearly-1").unlink(), 0),
    "a bit of the structure": (lambda folder: flip_bit(folder / "nearly-1", 8 * 200), 0),
    "a short structure": (lambda folder: _cut(folder / "nearly-1"), 0),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", list(_DAMAGES))
def test_an_addition_repairs_what_verify_reports(place: str, original: Path, clip: LoadedBundle, damage: str) -> None:
    folder, folders = Path(place), [original / "photos", original / "later"]
    with LocalIndex(folder) as index:
        before = index.entries()
        queries = clip.encode_images([entry.key for entry in before])
    do_damage, num_lost = _DAMAGES[damage]
    do_damage(folder)
    with LocalIndex(folder) as index:
        assert index.verify() != []
        report = update(index, clip, folders)
        assert (report.repaired, report.unchanged, report.lost) == (num_lost, len(before) - num_lost, 0)
        assert (index.verify(), index.remarks(), index.entries()) == ([], [], before)
        assert (index.built() is not None) == (num_lost == 0)
        answers = index.search(queries, top=1)
        assert [hits[0].entry.digest for hits in answers] == [entry.digest for entry in before]
        assert update(index, clip, folders).repaired == 0


def test_checksums_are_compared_only_after_damage_was_found(
    place: str, photos: Path, clip: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An addition to a million pictures would read gigabytes."""
    read: list[object] = []

    def counted(block: NDArray[np.float32]) -> str:
        read.append(block)
        return hash_block(block)

    monkeypatch.setattr("diptych.index.vector_file.hash_block", counted)
    with LocalIndex(Path(place)) as index:
        assert update(index, clip, [photos]).repaired == 0
        assert read == []
        flip_bit(Path(place) / "vectors-0.f32", 8 * 10)
        assert update(index, clip, [photos]).repaired == 0  # Nobody has looked yet.
        assert index.verify() != []
        assert update(index, clip, [photos]).repaired == 1
        read.clear()
        assert update(index, clip, [photos]).repaired == 0
        assert read == []


def test_pictures_of_other_folders_that_lost_their_vectors_are_counted(
    place: str, photos: Path, tiny_bundle: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(place) / "vectors-0.f32").unlink()
    assert main(["index", "verify", place]) == 2
    printed = capsys.readouterr()
    assert "the next index add embeds the pictures again" in printed.err
    assert f"Repair it: diptych index add {place} {original}" in printed.out
    assert main(["index", "add", place, str(photos), "--bundle", str(tiny_bundle)]) == 0
    printed = capsys.readouterr()
    assert "6 embedded again (their vectors were damaged)" in printed.out
    assert "2 pictures have no vector and are not found; add their folders again" in printed.err
    assert main(["index", "verify", place]) == 2
    assert "2 entries have no vector; the next index add embeds the pictures again" in capsys.readouterr().err
    assert main(["index", "add", place, str(original / "later")]) == 0
    assert main(["index", "verify", place]) == 0
