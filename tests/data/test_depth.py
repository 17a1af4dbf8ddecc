"""Grays of 12 bits in files of 16."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.sources.choice import open_source
from diptych.data.sources.splits import Splits
from diptych.images.decode import decode


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
