"""Scans: what codes rule out is never among the nearest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diptych.index import exact
from diptych.index.exact import encode, nearest
from tests.index.pictures import of_length_one


@pytest.fixture(autouse=True, scope="module")
def _small() -> Any:
    """Codes from the first vector on, whatever this CPU is fast with, and tiles of which even few vectors need several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "has_fast_int8", lambda: True)
        patch.setattr(exact, "_FEW", 0)
        patch.setattr(exact, "_TILE", 64)
        patch.setattr(exact, "_SMALLEST_TILE", 32)
        yield


@pytest.fixture
def num_scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of pairs in each call of `scores_of`."""
    nums: list[int] = []
    score = exact.scores_of

    def counting(*given: Any) -> Any:
        nums.append(len(given[3]))
        return score(*given)

    monkeypatch.setattr(exact, "scores_of", counting)
    return nums


def by_hand(vectors: NDArray[Any], queries: NDArray[np.float32], top: int) -> NDArray[np.float64]:
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    found: NDArray[np.float64] = -np.sort(-products, axis=1)[:, :top]
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(1, 300),
    top=st.integers(1, 40),
    spread=st.sampled_from([0.0, 0.01, 0.3, 3.0]),
    kind=st.sampled_from(["float32", "float16"]),
)
def test_codes_find_what_the_plain_scan_finds(seed: int, num: int, top: int, spread: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    vectors = of_length_one(1e-3 + rng.standard_normal((1, 16)) + spread * rng.standard_normal((num, 16))).astype(kind)
    vectors[:: max(1, num // 3)] = of_length_one(np.eye(16)[rng.integers(16, size=1)]).astype(
        kind
    )  # What codes round worst.
    queries = of_length_one(rng.standard_normal((3, 16)))
    rows, scores = nearest(vectors, queries, top=top, codes=encode(vectors))
    num_found = min(top, num)
    assert rows.shape == scores.shape == (3, num_found)
    np.testing.assert_allclose(scores, by_hand(vectors, queries, num_found), atol=1e-5)
    exactly = np.take_along_axis(queries @ vectors.astype(np.float32).T, rows, axis=1)
    np.testing.assert_allclose(scores, exactly, atol=1e-5)
    assert all(len(set(row)) == num_found for row in rows.tolist())
    plain = nearest(vectors, queries, top=top)
    np.testing.assert_array_equal(plain[0], rows)
    np.testing.assert_array_equal(plain[1], scores)


@pytest.mark.parametrize("coded", [False, True])
def test_only_some_rows_are_asked(coded: bool) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = of_length_one(rng.standard_normal((500, 16))), of_length_one(rng.standard_normal((300, 16)))
    among = np.sort(rng.choice(500, size=200, replace=False))
    rows, scores = nearest(vectors, queries, top=5, among=among, codes=encode(vectors) if coded else None)
    np.testing.assert_allclose(scores, by_hand(vectors[among], queries, 5), atol=1e-5)
    assert set(rows.flatten().tolist()) <= set(among.tolist())


def test_of_equals_the_first_come_first() -> None:
    vectors = np.repeat(of_length_one(np.random.default_rng(2).standard_normal((4, 16))), 50, axis=0)
    rows, _ = nearest(vectors, vectors[[60]], top=20, codes=encode(vectors))
    assert rows[0].tolist() == list(range(50, 70))


def test_nothing_among_nothing() -> None:
    empty = np.empty((0, 16), dtype=np.float32)
    rows, scores = nearest(empty, of_length_one(np.ones((2, 16))), top=3, codes=encode(empty))
    assert rows.shape == scores.shape == (2, 0)
    assert nearest(of_length_one(np.ones((5, 16))), empty, top=3)[0].shape == (0, 3)


def test_few_are_left_to_compare(monkeypatch: pytest.MonkeyPatch, num_scored: list[int]) -> None:
    """Of twenty thousand, codes leave less than a hundredth."""
    monkeypatch.setattr(exact, "_TILE", 2**14)
    rng = np.random.default_rng(3)
    vectors, queries = of_length_one(rng.standard_normal((20_000, 256))), of_length_one(rng.standard_normal((4, 256)))
    nearest(vectors, queries, top=10, codes=encode(vectors))
    assert 40 <= num_scored[0] < 4 * 200


@pytest.mark.parametrize("coded", [False, True])
def test_a_score_does_not_depend_on_the_request(coded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, in batches, with other numbers of hits, among fewer rows and in other tiles, bit for bit."""
    rng = np.random.default_rng(4)
    vectors = of_length_one(rng.standard_normal((700, 515)))
    queries = of_length_one(vectors[:20] + 0.3 * of_length_one(rng.standard_normal((20, 515))))
    codes = encode(vectors) if coded else None
    rows, scores = nearest(vectors, queries, top=300, codes=codes)
    np.testing.assert_allclose(scores, by_hand(vectors, queries, 300), atol=1e-7)
    for tile in (32, 2**10, 2**20):
        monkeypatch.setattr(exact, "_TILE", tile)
        for some in (slice(3, 4), slice(0, 7), slice(2, 20)):
            for top in (1, 20, 299):
                again = nearest(vectors, queries[some], top=top, codes=codes)
                np.testing.assert_array_equal(again[0], rows[some, :top])
                np.testing.assert_array_equal(again[1], scores[some, :top])
    among = np.sort(rows[5, ::3])
    np.testing.assert_array_equal(nearest(vectors, queries[[5]], top=99, among=among)[1][0], scores[5, ::3][:99])


@pytest.mark.parametrize("coded", [False, True])
def test_thousands_of_equal_vectors_are_cut_by_row(
    coded: bool, monkeypatch: pytest.MonkeyPatch, num_scored: list[int]
) -> None:
    """Candidates are scored in parts, so that memory does not grow with their number; the order is total all the same."""
    monkeypatch.setattr(exact, "_PAIRS", 100)
    rng = np.random.default_rng(5)
    kinds = of_length_one(rng.standard_normal((3, 48)))
    kind = rng.integers(3, size=5000)
    queries = of_length_one(kinds[[0, 1]] + 0.1 * rng.standard_normal((2, 48)))
    rows, scores = nearest(kinds[kind], queries, top=30, codes=encode(kinds[kind]) if coded else None)
    for number in (0, 1):
        assert rows[number].tolist() == np.flatnonzero(kind == number)[:30].tolist()
        assert len(set(scores[number].tolist())) == 1
    assert max(num_scored) < 500


def test_candidates_that_fell_behind_are_not_scored(monkeypatch: pytest.MonkeyPatch, num_scored: list[int]) -> None:
    """They are collected in tiles, and dropped when the scan has found enough that are nearer."""
    monkeypatch.setattr(exact, "_PAIRS", 100)
    rng = np.random.default_rng(7)
    vectors, queries = of_length_one(rng.standard_normal((5000, 48))), of_length_one(rng.standard_normal((2, 48)))
    scores = nearest(vectors, queries, top=30)[1]
    np.testing.assert_allclose(scores, by_hand(vectors, queries, 30), atol=1e-7)
    assert 2 * 30 <= sum(num_scored) < 2 * 40


def test_what_is_not_a_number_is_not_found() -> None:
    vectors = of_length_one(np.random.default_rng(6).standard_normal((50, 16)))
    queries = vectors[:2].copy()
    vectors[[3, 40]] = np.nan
    rows, _ = nearest(vectors, queries, top=50)
    assert [sorted(set(range(50)) - set(row)) for row in rows.tolist()] == [[3, 40], [3, 40]]
    assert nearest(vectors, np.full((1, 16), np.nan, dtype=np.float32), top=3)[0].tolist() == [[-1, -1, -1]]
