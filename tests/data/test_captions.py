"""Captions as training sees them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.batches.captions import drop_words, names_side
from diptych.data.batches.loader import DataConfig, Example, TrainingExamples
from diptych.data.open_source import open_source
from diptych.images.augment import AugmentConfig
from tests.conftest import TINY_MODEL


@pytest.mark.parametrize(
    "caption",
    [
        "the Left one",
        "LEFTMOST",
        "all right",
        "a left-handed man, turned",
        "two lefts",
        "ganz links",
        "à gauche",
        "左边的狗",
    ],
)
def test_a_caption_that_names_a_side(caption: str) -> None:
    assert names_side(caption)


@pytest.mark.parametrize("caption", ["leftover soup, bright", "an upright copyright sign", "a dog", ""])
def test_a_caption_that_names_no_side(caption: str) -> None:
    assert not names_side(caption)


def test_an_image_is_mirrored_only_if_its_caption_names_no_side(tmp_path: Path) -> None:
    """The left half of the image is black. A mirrored one has it on the right."""
    pixels = np.full((32, 32, 3), 255, dtype=np.uint8)
    pixels[:, :16] = 0
    rows = []
    for i, caption in enumerate(("it is all RIGHT", "a dog")):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": caption})
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    examples = TrainingExamples(
        open_source(f"json:{tmp_path / 'rows.json'}"),
        config=DataConfig(source="", workers=0),
        augment=AugmentConfig(crop_area=(1.0, 1.0), flip=1.0),
        pixels=TINY_MODEL.pixels,
        image_px=32,
        seed=0,
    )
    for i, (caption, is_mirrored) in enumerate((("it is all RIGHT", False), ("a dog", True))):
        example = examples[0, i]
        assert isinstance(example, Example)
        assert example.caption == caption
        assert (example.pixels[:, :, -1] == 0).all() == is_mirrored
        assert (example.pixels[:, :, 0] == 0).all() != is_mirrored


def test_words_left_out_by_their_share() -> None:
    caption = " ".join(f"w{number}" for number in range(20_000))
    kept = drop_words(caption, 0.1, np.random.default_rng(0)).split()
    assert 17_800 < len(kept) < 18_200
    assert kept == sorted(kept, key=lambda word: int(word[1:])), "their order stays"


def test_a_caption_never_loses_its_last_word() -> None:
    generator = np.random.default_rng(0)
    left = {drop_words("a red  dog", 1.0, generator) for _ in range(60)}
    assert left == {"a", "red", "dog"}
    assert drop_words("", 1.0, generator) == ""
    assert drop_words("  ", 1.0, generator) == "  "


def test_a_caption_that_loses_nothing_is_as_it_was() -> None:
    assert drop_words("two  spaces\n", 0.0, np.random.default_rng(0)) == "two  spaces\n"
