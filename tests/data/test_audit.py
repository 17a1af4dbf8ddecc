"""What an audit finds, on data whose faults are known."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from diptych.data.audit import audit, false_negatives
from diptych.data.audit_pictures import draw_histograms, suspicious_sheet
from diptych.data.oddities import Oddity
from diptych.data.sources.choice import open_source
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.images.fingerprints import NEAR_BITS, fingerprint, near_pairs


def _picture(number: int, size: tuple[int, int] = (200, 150)) -> Image.Image:
    """Soft hills of light, different for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def _source(folder: Path) -> Listing:
    folder.mkdir()
    for i in range(6):
        _picture(i).save(folder / f"{i}.png")
    (folder / "same.png").write_bytes((folder / "0.png").read_bytes())
    ImageEnhance.Brightness(_picture(1, (100, 75))).enhance(0.9).save(folder / "smaller.jpg", quality=80)
    (folder / "broken.jpg").write_bytes(b"no picture")
    builder = ListingBuilder(folder, where=folder)
    for i in range(6):
        builder.add(f"{i}.png", [f"number {i}", "a hill"], label="hill" if i else "first", split="train")
    builder.add("same.png", ["word " * 100, ""], split="val")
    builder.add("smaller.jpg", ["A  hill"], split="train")
    builder.add("broken.jpg", ["x"], split="train")
    return builder.build()


def test_everything_planted_is_found(tmp_path: Path) -> None:
    source = _source(tmp_path / "set")
    seen = []
    found = audit(source, on_sample=lambda: seen.append(1))
    assert len(seen) == found.num_samples == 9
    assert found.num_captions == 15
    assert found.splits == {"train": 8, "val": 1}
    assert found.labels == {"hill": 5, "first": 1}
    assert found.same == (("0.png", "same.png"),)
    assert found.alike == (("1.png", "smaller.jpg"),)
    assert found.across_splits == (("0.png", "same.png"),)
    ((key, reason),) = found.unreadable
    assert key == "broken.jpg"
    assert "broken.jpg" in reason
    assert found.sizes == {"smallest": (100, 75), "median": (200, 150), "largest": (200, 150)}
    assert len(found.areas) == 8
    assert found.modes == {"PNG RGB": 7, "JPEG RGB": 1}
    assert (found.num_cut, found.num_empty) == (1, 0)
    assert found.oddities == (Oddity("empty captions", "left out", 1, ("same.png",)),)
    assert found.frequent[0] == ("a hill", 6)
    draw_histograms(found, tmp_path / "histograms.png")
    with Image.open(tmp_path / "histograms.png") as drawn:
        assert drawn.width > 800
    sheet = suspicious_sheet(source, found)
    assert sheet is not None
    assert suspicious_sheet(open_source("shapes:3"), audit(open_source("shapes:3"))) is not None  # Drawings repeat.


def test_data_without_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    builder = ListingBuilder(folder, where=folder)
    for i in range(12):
        _picture(i).save(folder / f"{i}.png")
        builder.add(f"{i}.png", [f"number {i}"])
    source = builder.build()
    found = audit(source)
    assert (found.same, found.alike, found.unreadable, found.num_cut) == ((), (), (), 0)
    assert found.splits == {"by key": 12}
    assert set(found.false_negatives.values()) == {0.0}
    assert audit(source, splits=["a", "b"] * 6).splits == {"a": 6, "b": 6}
    assert suspicious_sheet(source, found) is None


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 2**32))
def test_near_pairs_are_those_of_the_slow_twin(values: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    for value in list(values):  # Neighbours at every distance around the limit.
        flips = generator.choice(64, size=int(generator.integers(0, 6)), replace=False)
        values.append(value ^ sum(1 << int(bit) for bit in flips))
    known: list[int | None] = [*values, None]
    expected = [
        (a, b)
        for a in range(len(values))
        for b in range(a + 1, len(values))
        if (values[a] ^ values[b]).bit_count() <= NEAR_BITS
    ]
    assert near_pairs(known) == expected


def test_a_fingerprint_forgives_what_an_eye_does() -> None:
    marks = {fingerprint(_picture(i)) for i in range(50)}
    assert len(marks) == 50
    bright = ImageEnhance.Brightness(_picture(3, (80, 60))).enhance(1.1)
    assert (fingerprint(bright) ^ fingerprint(_picture(3))).bit_count() <= NEAR_BITS


@given(
    st.lists(
        st.lists(st.sampled_from(["a dog", "A  Dog", "a cat", "a bird"]), min_size=1, max_size=3),
        min_size=2,
        max_size=5,
    )
)
def test_false_negatives_equal_the_slow_twin(captions: list[list[str]]) -> None:
    """Every pair of pictures, every choice of captions; batches here take all pictures."""
    expected = 0.0
    texts = [[" ".join(text.lower().split()) for text in own] for own in captions]
    for a in range(len(texts)):
        for b in range(a + 1, len(texts)):
            agreeing = sum(one == other for one in texts[a] for other in texts[b])
            expected += agreeing / (len(texts[a]) * len(texts[b]))
    assert false_negatives([tuple(own) for own in captions])[64] == pytest.approx(expected, abs=1e-4)
