"""What an audit finds, on data whose faults are known."""

import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from diptych.data.open_source import open_source
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.data.storage.oddities import Oddity
from diptych.data.tools.audit import audit, false_negatives
from diptych.data.tools.audit_pictures import draw_histograms, suspicious_sheet
from diptych.images.fingerprints import NEAR_BITS, fingerprint, near_groups, near_pairs


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


def test_groups_of_pictures_that_look_alike(tmp_path: Path) -> None:
    """A group has one of several samples with the same picture; one that spans splits has all of them."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a", "b"):
        _picture(0).save(folder / f"{name}.png")
    for name, factor in (("c", 0.9), ("d", 0.95)):
        ImageEnhance.Brightness(_picture(0)).enhance(factor).save(folder / f"{name}.png")
    _picture(1).save(folder / "e.png")
    _picture(1, (100, 75)).save(folder / "f.png")
    builder = ListingBuilder(folder, where=folder)
    for name in "abcdef":
        builder.add(f"{name}.png", [name], split="val" if name == "d" else "train")
    source = builder.build()
    found = audit(source)
    assert found.same == (("a.png", "b.png"),)
    assert found.alike == (("a.png", "c.png", "d.png"), ("e.png", "f.png"))
    assert found.across_splits == (("a.png", "b.png", "c.png", "d.png"),)
    assert suspicious_sheet(source, found) is not None


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 2**32), st.booleans())
def test_near_pairs_and_groups_are_those_of_the_slow_twin(values: list[int], seed: int, is_narrow: bool) -> None:
    generator = np.random.default_rng(seed)
    if is_narrow:
        values = [value & 0xFF00 for value in values]  # Most bits are the same, as in pictures with white borders.
    for value in list(values):  # Neighbors at every distance around the limit.
        flips = generator.choice(64, size=int(generator.integers(0, 6)), replace=False)
        values.append(value ^ sum(1 << int(bit) for bit in flips))
    distinct = sorted(set(values))
    expected = [(a, b) for a, b in combinations(range(len(distinct)), 2) if _is_near(distinct[a], distinct[b])]
    found = [pair for part in near_pairs(np.array(distinct, dtype=np.uint64)) for pair in np.stack(part).T.tolist()]
    assert sorted(map(tuple, found)) == expected  # Each once.
    groups = [{position} for position in range(len(values))]
    for a, b in combinations(range(len(values)), 2):
        if _is_near(values[a], values[b]):
            groups[a] |= groups[b]
            for other in groups[a]:
                groups[other] = groups[a]
    expected_groups = sorted({tuple(sorted(group)) for group in groups if len(group) > 1})
    assert near_groups([*values, None]) == [list(group) for group in expected_groups]


def _is_near(one: int, other: int) -> bool:
    return (one ^ other).bit_count() <= NEAR_BITS


def _flipped(value: int, bit: int) -> int:
    return value ^ (1 << bit)


@pytest.mark.parametrize("num_distinct", [1, 64])
def test_a_picture_that_occurs_10000_times_is_one_group(num_distinct: int) -> None:
    """There are 50 million pairs. A list of them takes gigabytes."""
    fingerprints = [_flipped(2**60 + 7, number % num_distinct) for number in range(10_000)]
    tracemalloc.start()
    groups = near_groups(fingerprints)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert groups == [list(range(10_000))]
    assert peak < 10 * 2**20


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
