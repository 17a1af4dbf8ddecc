"""Groups of duplicates in large collections: tables of sign bits against all pairs, and how much is compared."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.core.components import Components
from diptych.index import similar
from diptych.index.groups import DuplicateGroup, duplicate_groups
from diptych.index.sign_tables import CenteredVectors, TablePlan, candidates, plan_tables
from diptych.index.similar import join_similar
from diptych.index.unit_vectors import UnitVectors

_Vectors = NDArray[np.float32]
_NUM, _DIM = 4000, 256


def _noise(num: int, scale: float, *, seed: int = 1) -> _Vectors:
    """Vectors whose length is about `scale`."""
    draw = np.random.default_rng(seed)
    return (scale * draw.standard_normal((num, _DIM)) / _DIM**0.5).astype(np.float32)


def _random() -> _Vectors:
    vectors = _noise(_NUM, 1)
    vectors[:200] = vectors[-200:] + _noise(200, 0.19, seed=2)
    return vectors


def _clustered() -> _Vectors:
    """Cosines of 0.8 within 40 clusters, and near-duplicates at cosines of 0.96 to 1."""
    vectors = _noise(40, 1, seed=3)[np.arange(_NUM) % 40] + _noise(_NUM, 0.5) + np.float32(0.05)
    vectors[:300] = vectors[-300:] + _noise(300, 1, seed=4) * np.linspace(0, 0.3, 300, dtype=np.float32)[:, None]
    return vectors


def _narrow(residual: float) -> _Vectors:
    return _noise(1, 1, seed=5) + _noise(_NUM, residual)


def _placeholders() -> _Vectors:
    vectors = _random()
    vectors[500:1500] = vectors[500] + _noise(1000, 1e-4, seed=6)
    vectors[1500:2500] = vectors[1500]
    return vectors


def _with_damage() -> _Vectors:
    vectors = _random()
    vectors[10:300:7], vectors[11:300:7] = 0, np.nan
    return vectors


def _first(vectors: _Vectors, threshold: float, exact_up_to: int) -> NDArray[np.int64]:
    components = Components(len(vectors))
    join_similar(UnitVectors(vectors), components, threshold, exact_up_to=exact_up_to)
    return components.first()


@pytest.mark.parametrize(
    "make",
    [
        _random,
        _clustered,
        pytest.param(lambda: _narrow(0.1), id="narrow: all are similar"),
        pytest.param(lambda: _narrow(0.145), id="narrow: about half are similar"),
        pytest.param(lambda: _narrow(0.16), id="narrow: few are similar"),
        _placeholders,
        _with_damage,
    ],
)
def test_large_collections_have_the_components_of_all_pairs(make: Callable[[], _Vectors]) -> None:
    vectors = make()
    expected = _first(vectors, 0.98, len(vectors))
    np.testing.assert_array_equal(_first(vectors, 0.98, 0), expected)
    assert 1 <= len(set(expected.tolist())) < len(vectors)


def test_collections_of_zeros_and_of_nothing() -> None:
    for vectors in (np.zeros((5, 8), np.float32), np.full((5, 8), np.nan, np.float32), np.zeros((0, 8), np.float32)):
        np.testing.assert_array_equal(_first(vectors, 0.98, 0), np.arange(len(vectors)))


def test_zero_and_negative_thresholds_compare_all_pairs() -> None:
    vectors = _with_damage()[:100]
    for threshold in (-1.0, 0.0, 0.3):
        np.testing.assert_array_equal(_first(vectors, threshold, 0), _first(vectors, threshold, 100))


def _plan(vectors: _Vectors, distance: float) -> tuple[CenteredVectors, TablePlan]:
    unit = UnitVectors(vectors)
    mean = unit[:].mean(axis=0)
    centered = CenteredVectors(unit, np.arange(len(vectors)), mean, np.linalg.norm(unit[:] - mean, axis=1))
    shortest, draw = float(centered.lengths.min()), np.random.default_rng(0)
    plan = plan_tables(centered, min_length=shortest, distance=distance, rng=draw)
    assert plan is not None
    return centered, plan


@pytest.mark.parametrize("common", [0.0, 1.5])
def test_tables_find_999_of_1000_pairs_at_the_threshold(common: float) -> None:
    """5,000 pairs at a cosine of 0.98: at most 5 are missed on average. 15 happen less than once in 5,000 seeds."""
    one, across = _noise(5000, 1) + common * _noise(1, 1, seed=3), _noise(5000, 1, seed=2)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    across -= np.einsum("ne,ne->n", one, across)[:, None] * one
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    vectors = np.concatenate([one, np.float32(0.98) * one + np.float32((1 - 0.98**2) ** 0.5) * across])
    distance = (2 - 2 * 0.98) ** 0.5 + 1e-6
    centered, plan = _plan(vectors, distance)
    is_found, num_candidates = np.zeros(5000, dtype=np.bool), 0
    blocks = candidates(centered, Components(10000), plan, distance=distance, rng=np.random.default_rng(1))
    for near, rows, columns in blocks:
        inner, across_columns = np.nonzero(near)
        num_candidates += len(inner)
        pairs = np.sort(np.stack([rows[inner], columns[across_columns]]), axis=0)
        is_found[pairs[0][pairs[1] - pairs[0] == 5000]] = True
    assert np.count_nonzero(~is_found) <= 15
    assert num_candidates < 0.01 * 10000**2  # Including those of a vector with itself, and those found several times.


def test_tables_grow_with_the_distance_and_shrink_with_the_spread() -> None:
    vectors = _noise(_NUM, 1)
    (_, near), (_, far), (_, narrow) = _plan(vectors, 0.1), _plan(vectors, 0.3), _plan(_narrow(0.4), 0.1)
    assert near.cost < far.cost
    assert near.cost < narrow.cost


def _num_read(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], list[DuplicateGroup]]) -> tuple[int, int]:
    """The number of vectors that are read, and of bytes in memory."""
    num_read, get = 0, UnitVectors.__getitem__

    def count(self: UnitVectors, contents: slice | NDArray[np.int64]) -> _Vectors:
        nonlocal num_read
        found = get(self, contents)
        num_read += len(found)
        return found

    monkeypatch.setattr(UnitVectors, "__getitem__", count)
    tracemalloc.start()
    groups = compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(group.kind, len(group.pictures)) for group in groups] == [("same picture", 10_000)]
    return num_read, peak


@pytest.mark.parametrize("num_hashes", [1, 40])
def test_a_placeholder_that_occurs_10000_times_is_not_compared_in_pairs(
    monkeypatch: pytest.MonkeyPatch, num_hashes: int
) -> None:
    """Files of one picture with other metadata, whose vectors differ in rounding. There are 50 million pairs."""
    vectors = np.ones((10_000, 8), np.float32) + 1e-5 * np.random.default_rng(0).standard_normal(
        (10_000, 8), np.float32
    )
    keys, hashes = [[str(number)] for number in range(10_000)], [1 << (number % num_hashes) for number in range(10_000)]
    num_read, peak = _num_read(monkeypatch, lambda: duplicate_groups(keys, hashes, vectors, 0.98))
    assert num_read < 10 * 10_000
    assert peak < 50 * 2**20


def test_plain_pictures_of_one_hash_are_told_apart_by_their_vectors() -> None:
    """The hash of plain pictures is 0. 300 of them are of three kinds, and a near hash has one more of each."""
    vectors = np.eye(4, dtype=np.float32)[np.arange(300) % 3]
    vectors = np.concatenate([vectors, np.eye(4, dtype=np.float32)])
    keys = [[f"{number:03}"] for number in range(304)]
    groups = duplicate_groups(keys, [0] * 300 + [0b111] * 4, vectors, 0.98)
    expected = [[*range(kind, 300, 3), 300 + kind] for kind in range(3)]
    assert [[int(picture.key) for picture in group.pictures] for group in groups] == expected


def test_hashes_near_each_other_are_compared_member_by_member() -> None:
    """Each of two hashes has 100 members, which agree only with the member of the same number."""
    vectors = np.concatenate([np.eye(100, 128, dtype=np.float32)] * 2)
    groups = duplicate_groups([[f"{i:03}"] for i in range(200)], [5] * 100 + [4] * 100, vectors, 1.0)
    assert [(group.kind, [int(p.key) for p in group.pictures]) for group in groups] == [
        ("same picture", [number, number + 100]) for number in range(100)
    ]


def test_vectors_of_a_file_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16, of which each second row counts, in another order."""
    vectors = _clustered()
    np.save(tmp_path / "vectors.npy", np.repeat(vectors.astype(np.float16), 2, axis=0))
    stored = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    order = np.random.default_rng(0).permutation(_NUM)
    keys = [[f"{number:04}"] for number in range(_NUM)]
    taken = vectors.astype(np.float16)[order]
    monkeypatch.setattr(similar, "_MEAN_SAMPLE", 500)
    found = duplicate_groups(keys, [None] * _NUM, stored, 0.98, rows=2 * order, exact_up_to=0)
    assert found == duplicate_groups(keys, [None] * _NUM, taken, 0.98, exact_up_to=0)
    exact = duplicate_groups(keys, [None] * _NUM, taken, 0.98)
    assert [group.pictures for group in found] == [group.pictures for group in exact]
    assert len(found) > 100
