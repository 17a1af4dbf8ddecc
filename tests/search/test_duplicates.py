"""Duplicates of an indexed folder: identical files, the same picture, and what the model calls similar."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.core.errors import IndexingError
from diptych.images.decode import decode
from diptych.images.fingerprints import fingerprint
from diptych.images.pool import DecodePool
from diptych.index.groups import duplicate_groups
from diptych.index.local import LocalIndex
from diptych.index.open_index import open_index
from diptych.index.tables import COLUMNS_2, hash_row
from diptych.inference.embedder import Embedder
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import Update, open_or_create, update
from diptych.search.duplicates import find_duplicates


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures of smooth noise; one twice, and one as a smaller JPEG."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in "abcd":
        coarse = Image.fromarray(generator.integers(0, 256, (8, 9, 3), dtype=np.uint8))
        coarse.resize((180, 120), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    (folder / "a copy.png").write_bytes((folder / "a.png").read_bytes())
    Image.open(folder / "b.png").resize((90, 60)).save(folder / "b small.jpg", quality=70)
    return folder


def _made(clip: LoadedBundle, place: str | Path, folder: Path) -> None:
    with open_or_create(place, clip) as index:
        assert update(index, clip, [folder]) == Update(added=5, copies=1)


def _expected(folder: Path) -> dict[str, int]:
    return {str(path): fingerprint(decode(path)) for path in sorted(folder.iterdir())}


def test_add_stores_the_hash_of_the_audit(clip: LoadedBundle, pictures: Path, place: str) -> None:
    _made(clip, place, pictures)
    with open_index(place) as index:
        assert {entry.key: entry.phash for entry in index.entries()} == _expected(pictures)
        (pictures / "c.png").rename(pictures / "moved.png")
        (pictures / "d.txt").write_text("a caption", "utf-8")
        update(index, clip, [pictures], prune=True)  # Neither is decoded again.
        (pictures / "d.txt").unlink()
        assert {entry.key: entry.phash for entry in index.entries()} == _expected(pictures)


def test_the_command_names_each_kind(
    clip: LoadedBundle, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "index"
    _made(clip, place, pictures)
    sheet = tmp_path / "sheet.png"
    assert main(["index", "duplicates", str(place), "--threshold", "1", "--sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "Group 1: identical files" in said
    assert "Group 2: same picture" in said
    assert "2 groups, 4 pictures" in said
    assert sheet.stat().st_size > 1000
    assert main(["index", "duplicates", str(place), "--threshold", "0.0001", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)
    names = [(group["kind"], [Path(picture["key"]).name for picture in group["pictures"]]) for group in groups]
    assert [(kind, sorted(found)) for kind, found in names[:2]] == [
        ("identical files", ["a copy.png", "a.png"]),
        ("same picture", ["b small.jpg", "b.png"]),
    ]
    assert [kind for kind, _ in names[2:]] == ["similar according to this model"]
    (first, second) = clip.encode_images([groups[1]["pictures"][0]["key"], groups[1]["pictures"][1]["key"]])
    assert groups[1]["pictures"][1]["cosine"] == pytest.approx(float(first @ second), abs=1e-5)
    assert main(["index", "duplicates", str(place), "--threshold", "nan"]) == 2


def _downgrade(place: Path) -> None:
    """To format 2, which has no hashes."""
    with sqlite3.connect(place / "index.db") as database:
        database.create_function("hash_row", -1, hash_row)
        database.execute("ALTER TABLE entries DROP COLUMN phash")
        database.execute(f"UPDATE entries SET row_hash = hash_row({COLUMNS_2})")
        database.execute("UPDATE about SET value = '2', row_hash = hash_row(name, '2') WHERE name = 'format'")
    database.close()


def test_hashes_of_an_earlier_version_are_computed_once(
    clip: LoadedBundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    _made(clip, place, pictures)
    with open_index(place) as index:
        expected = find_duplicates(index, threshold=1.0)
    assert [group.kind for group in expected] == ["identical files", "same picture"]
    _downgrade(place)
    hashes = _expected(pictures)
    (pictures / "a copy.png").write_bytes(b"something else")  # The hash comes from a.png.
    (pictures / "c.png").unlink()
    with open_index(place) as index:
        with monkeypatch.context() as patch:  # As if it could not be written.
            patch.setattr(LocalIndex, "writing", _refuse)
            assert find_duplicates(index, threshold=1.0) == expected
            assert {entry.phash for entry in index.entries()} == {None}
        assert find_duplicates(index, threshold=1.0) == expected
        found = {entry.key: entry.phash for entry in index.entries()}
        assert found == hashes | {str(pictures / "c.png"): None}
        assert index.verify() == []
        monkeypatch.setattr(DecodePool, "phash", lambda *_: pytest.fail("computed again"))
        assert find_duplicates(index, threshold=1.0) == expected


def _refuse(*_: object, **__: object) -> None:
    raise IndexingError("cannot be written (Read-only file system)")


def test_an_index_of_the_earlier_format_is_not_embedded_again(
    clip: LoadedBundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    _made(clip, place, pictures)
    _downgrade(place)
    encode = Embedder.encode_images
    monkeypatch.setattr(
        Embedder,
        "encode_images",
        lambda self, images, **more: pytest.fail("embedded") if images else encode(self, images),
    )
    with open_index(place) as index:
        assert update(index, clip, [pictures]) == Update(unchanged=6)


def test_the_groups_are_those_of_the_slow_twin() -> None:
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((40, 16))
    vectors = (centers[generator.integers(0, 40, 5000)] + 0.08 * generator.standard_normal((5000, 16))).astype(
        np.float32
    )
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    threshold = 0.98
    seen, expected = set[int](), list[list[int]]()
    for start in range(len(unit)):
        if start in seen:
            continue
        waiting, group = [start], {start}
        while waiting:
            for other in np.flatnonzero(unit @ unit[waiting.pop()] >= threshold - 1e-6).tolist():
                if other not in group:
                    group.add(other)
                    waiting.append(other)
        seen |= group
        if len(group) > 1:
            expected.append(sorted(group))
    found = duplicate_groups([[str(row)] for row in range(len(unit))], [None] * len(unit), vectors, threshold)
    assert [[int(picture.key) for picture in group.pictures] for group in found] == expected
    assert 5 < len(expected) < 1000


def test_many_similar_pictures_make_one_group() -> None:
    """Eight thousand: 32 million pairs."""
    vectors = (1 + 0.01 * np.random.default_rng(0).standard_normal((8000, 8))).astype(np.float32)
    (group,) = duplicate_groups([[str(row)] for row in range(8000)], [7] * 8000, vectors, 1.0)
    assert (group.kind, len(group.pictures)) == ("same picture", 8000)


def test_threshold_1_finds_identical_vectors() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 512)).astype(np.float32)
    for scale in (np.float32(1), np.float32(0.999)):  # float16 keeps vectors whose length is not quite 1.
        unit = scale * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        doubled = np.concatenate([unit, unit])
        groups = duplicate_groups([[f"{row:03d}"] for row in range(100)], [None] * 100, doubled, 1.0)
        assert [[picture.key for picture in group.pictures] for group in groups] == [
            [f"{row:03d}", f"{row + 50:03d}"] for row in range(50)
        ]
