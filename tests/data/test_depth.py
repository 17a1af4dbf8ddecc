"""Grays of 12 bits in files of 16."""

import json
import tarfile
import zipfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as HuggingFaceImage
from PIL import Image

from diptych.data.open_source import open_source
from diptych.data.sources.listing import Listing
from diptych.data.sources.splits import Splits
from diptych.images.decode import decode
from tests.conftest import draw_photos


def _grays(path: Path, highest: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([[0, highest // 2], [highest, highest]], dtype=np.uint16)).save(path)


def _table(folder: Path, names: list[str]) -> str:
    (folder / "rows.json").write_text(json.dumps([{"image": name, "caption": name} for name in names]), "utf-8")
    return f"json:{folder / 'rows.json'}"


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_twelve_bits_are_scaled_as_such(tmp_path: Path, suffix: str) -> None:
    names = [f"{i}.{suffix}" for i in range(3)]
    for name in names:
        _grays(tmp_path / name, 4095)
    Image.new("RGB", (2, 2), (9, 8, 7)).save(tmp_path / "color.png")
    source = open_source(_table(tmp_path, [*names, "color.png"]))
    for i in range(3):
        assert np.asarray(decode(source[i].image))[..., 0].tolist() == [[0, 127], [255, 255]]
    assert np.asarray(decode(source[3].image))[0, 0].tolist() == [9, 8, 7]
    assert str(source.oddities[0]) == (
        f"16-bit grays without a value above 4095: read as 12 bits (3; 0.{suffix}, 1.{suffix}, 2.{suffix})"
    )
    train = Splits(source).take("all")
    assert np.asarray(decode(train[0].image)).max() == 255


def test_one_value_above_decides_for_all(tmp_path: Path) -> None:
    _grays(tmp_path / "dark.png", 4095)
    _grays(tmp_path / "light.png", 65535)
    source = open_source(_table(tmp_path, ["dark.png", "light.png"]))
    assert [int(np.asarray(decode(source[i].image)).max()) for i in range(2)] == [15, 255]
    assert source.oddities == ()


def test_each_source_of_a_mixture_decides_for_itself(tmp_path: Path) -> None:
    _grays(tmp_path / "a" / "x.png", 4095)
    _grays(tmp_path / "b" / "x.png", 65535)
    parts = [_table(tmp_path / name, ["x.png"]) for name in "ab"]
    source = open_source(f"mix: {' + '.join(parts)}")
    assert [int(np.asarray(decode(source[i].image)).max()) for i in range(2)] == [255, 255]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_twelve_bits_in_a_zip_a_tar_and_a_parquet_file(tmp_path: Path, suffix: str) -> None:
    """In the last two, keys have no suffix, so the first bytes of the file decide."""
    paths = [tmp_path / name / f"0.{suffix}" for name in ("cat", "dog")]
    for path in paths:
        _grays(path, 4095)
    caption = tmp_path / "caption.txt"
    caption.write_text("a pet", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for path in paths:
            file.write(path, f"{path.parent.name}/{path.name}")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for path in paths:
            tar.add(path, f"{path.parent.name}.{suffix}")
            tar.add(caption, f"{path.parent.name}.txt")
    rows = {"image": [path.read_bytes() for path in paths], "caption": ["a cat", "a dog"]}
    features = Features({"image": HuggingFaceImage(), "caption": Value("string")})
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "set.parquet")
    specs = (f"class-folder:{tmp_path / 'set.zip'}", f"shards:{tmp_path / 'set.tar'}", f"hf:{tmp_path / 'set.parquet'}")
    for spec in specs:
        source = open_source(spec)
        assert np.asarray(decode(source[0].image))[..., 0].tolist() == [[0, 127], [255, 255]]
        assert source.oddities[-1].num == 2


def test_no_jpeg_is_opened_to_count_bits(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["0.jpg", "1.jpg"])
    with patch.object(Listing, "__getitem__", side_effect=AssertionError("read")):
        assert len(open_source(_table(tmp_path, ["0.jpg", "1.jpg"]))) == 2
