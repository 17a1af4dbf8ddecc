"""Captions as training sees them."""

import numpy as np
import pytest

from diptych.data.captions import drop_words, mirror_words


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a man on the left of a Right-handed girl", "a man on the right of a Left-handed girl"),
        ("leftover rights, bright", "leftover rights, bright"),
        ("left left right", "right right left"),
        ("", ""),
    ],
)
def test_mirror_words(caption: str, mirrored: str) -> None:
    assert mirror_words(caption) == mirrored
    assert mirror_words(mirrored) == caption


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
