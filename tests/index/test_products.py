"""Products by ONNX Runtime are those of NumPy."""

import os
import sys

import numpy as np
import pytest

from diptych.index import products
from diptych.index.products import float_products, integer_products, is_exact

SIZES = [(1, 1, 1), (1, 2500, 512), (3, 1024, 515), (17, 1025, 64), (256, 40, 7), (2, 0, 16), (0, 5, 16)]
"""Numbers of queries, of vectors and of dimensions."""


@pytest.mark.parametrize(("num_queries", "num", "dim"), SIZES)
@pytest.mark.skipif(not is_exact(), reason="this CPU has no VNNI instructions")
def test_integers_are_multiplied_exactly(num_queries: int, num: int, dim: int) -> None:
    rng = np.random.default_rng(num)
    queries, vectors = (rng.integers(-128, 128, size=(rows, dim), dtype=np.int8) for rows in (num_queries, num))
    queries[:1], vectors[:1] = -128, 127  # The largest products.
    vectors[1:2] = -128
    found = integer_products(queries, vectors)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, queries.astype(np.int64) @ vectors.astype(np.int64).T)


@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize(("num_queries", "num", "dim"), SIZES)
def test_floats_differ_by_their_rounding(num_queries: int, num: int, dim: int, kind: str) -> None:
    rng = np.random.default_rng(num)
    queries = rng.standard_normal((num_queries, dim), dtype=np.float32)
    vectors = rng.standard_normal((num, dim), dtype=np.float32).astype(kind)
    vectors[:1] = 1e-7  # Subnormal in float16.
    full = queries.astype(np.float64), vectors.astype(np.float64)
    found, bound = float_products(queries, vectors), np.abs(full[0]) @ np.abs(full[1]).T * dim * 2.0**-24
    assert found.dtype == np.float32
    assert (np.abs(found - full[0] @ full[1].T) <= bound).all()


def test_float16_keeps_what_is_not_a_number() -> None:
    vectors = np.array([[np.nan, 0], [np.inf, 0], [-np.inf, 1], [65504, -1]], dtype=np.float16)
    found = float_products(np.ones((1, 2), dtype=np.float32), vectors)
    np.testing.assert_array_equal(found, [[np.nan, np.inf, -np.inf, 65503]])


def test_a_forked_process_has_threads_of_its_own() -> None:
    if sys.platform == "win32":
        pytest.skip("no forks")
    vectors = np.ones((3000, 64), dtype=np.float16)
    expected = float_products(vectors[:1].astype(np.float32), vectors)
    child = os.fork()
    if not child:
        found = float_products(vectors[:1].astype(np.float32), vectors)
        os._exit(0 if np.array_equal(found, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("graph", sorted(products._MODELS))
def test_the_graphs_are_valid(graph: products._Graph) -> None:
    checker = pytest.importorskip("onnx.checker")
    checker.check_model(products._MODELS[graph], full_check=True)
