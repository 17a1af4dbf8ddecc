"""Scans: what codes rule out is never among the nearest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diptych.index import exact
from diptych.index.exact import encode, nearest


def unit(array: NDArray[Any]) -> NDArray[np.float32]:
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True, scope="module")
def _small() -> Any:
    """Codes from the first vector on, whatever this CPU is fast with, and tiles of which even few vectors need several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "has_fast_int8", lambda: True)
        patch.setattr(exact, "_FEW", 0)
        patch.setattr(exact, "_TILE", 64)
        patch.setattr(exact, "_SMALLEST_TILE", 32)
        yield


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
    vectors = unit(1e-3 + rng.standard_normal((1, 16)) + spread * rng.standard_normal((num, 16))).astype(kind)
    vectors[:: max(1, num // 3)] = unit(np.eye(16)[rng.integers(16, size=1)]).astype(kind)  # What codes round worst.
    queries = unit(rng.standard_normal((3, 16)))
    rows, scores = nearest(vectors, queries, top=top, codes=encode(vectors))
    num_found = min(top, num)
    assert rows.shape == scores.shape == (3, num_found)
    np.testing.assert_allclose(scores, by_hand(vectors, queries, num_found), atol=1e-5)
    exactly = np.take_along_axis(queries @ vectors.astype(np.float32).T, rows, axis=1)
    np.testing.assert_allclose(scores, exactly, atol=1e-5)
    assert all(len(set(row)) == num_found for row in rows.tolist())


@pytest.mark.parametrize("coded", [False, True])
def test_only_some_rows_are_asked(coded: bool) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = unit(rng.standard_normal((500, 16))), unit(rng.standard_normal((300, 16)))
    among = np.sort(rng.choice(500, size=200, replace=False))
    rows, scores = nearest(vectors, queries, top=5, among=among, codes=encode(vectors) if coded else None)
    np.testing.assert_allclose(scores, by_hand(vectors[among], queries, 5), atol=1e-5)
    assert set(rows.flatten().tolist()) <= set(among.tolist())


def test_of_equals_the_first_come_first() -> None:
    vectors = np.repeat(unit(np.random.default_rng(2).standard_normal((4, 16))), 50, axis=0)
    rows, _ = nearest(vectors, vectors[[60]], top=20, codes=encode(vectors))
    assert rows[0].tolist() == list(range(50, 70))


def test_nothing_among_nothing() -> None:
    empty = np.empty((0, 16), dtype=np.float32)
    rows, scores = nearest(empty, unit(np.ones((2, 16))), top=3, codes=encode(empty))
    assert rows.shape == scores.shape == (2, 0)
    assert nearest(unit(np.ones((5, 16))), empty, top=3)[0].shape == (0, 3)


def test_few_are_left_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twenty thousand, codes leave less than a hundredth."""
    monkeypatch.setattr(exact, "_TILE", 2**14)
    rng = np.random.default_rng(3)
    vectors, queries = unit(rng.standard_normal((20_000, 256))), unit(rng.standard_normal((4, 256)))
    compared: list[int] = []
    whole = exact._exactly

    def counting(*given: Any) -> Any:
        compared.append(len(given[3]))
        return whole(*given)

    monkeypatch.setattr(exact, "_exactly", counting)
    nearest(vectors, queries, top=10, codes=encode(vectors))
    assert 40 <= compared[0] < 4 * 200
