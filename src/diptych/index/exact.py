"""Exact nearest neighbors: fast products select candidates, and reproducible scores rank them.

Candidates come from a float32 matrix product, or from a product of eight-bit codes (`products.py`). Both have an error of at
most `slack`. A vector whose product is more than 2 * `slack` below the K-th best cannot be among the K nearest, nor tie with
the last of them. A code consists of a scale and integers. With q' and v' the decoded codes of a query q and a vector v, the
error of the product is bounded by the Cauchy-Schwarz inequality: |q.v - q'.v'| <= |q - q'| |v'| + |q| |v - v'|. Products of the
integers are exact. Sign bits would be no useful first pass: their bound excludes hardly any vector (decision 0044).

The score of each candidate is computed separately, in float64 and in a fixed order of summation, and rounded to float32. It
therefore does not depend on the other queries and vectors of a request, and equal vectors have equal scores. Candidates are
sorted by decreasing score, and equal scores by row.
Shapes: N vectors, E embedding, Q queries, K found, M rows of a subset, P pairs of a query and a vector, C vectors of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int8, Int64
from numpy import ndarray

from diptych.core.cpu import has_fast_int8
from diptych.index.products import float_products, integer_products, is_exact

_CHUNK = 65_536
_TILE = 2**21
"""Number of products per tile. Products of codes fit in the cache."""
_PAIRS = 2**20
"""Number of candidates that are collected before they are scored, unless `top` needs more. Equal vectors are all candidates."""
_SCORED_NUMBERS = 2**18
"""Number of values that are converted to float64 at a time, so that they fit in the cache."""
_SMALLEST_TILE = 1024
"""Minimum number of vectors per tile."""
_QUERIES = 256
"""Number of queries that are compared at a time."""
_MOST_LEFT = 0.02
"""Maximum share of pairs of a query and a vector that may be candidates according to the codes, in addition to 4 K pairs per
query. If vectors differ by little more than the errors of their codes, most pairs are candidates, and the float32 products are
faster."""
_FEW = 10_000
"""Minimum number of vectors for which codes are used. The float32 product of fewer vectors is faster."""
_LARGEST = 127
_LOWEST = np.finfo(np.float32).min
_ROUNDING = 1e-5
"""Upper bound of the rounding error of float32 in a sum of codes."""

Vectors: TypeAlias = Float[ndarray, "N E"]
"""Unit vectors in float32, or in float16 as stored in a file."""


@dataclass(frozen=True)
class Codes:
    """Vectors quantized to eight bits: `integers * scale` approximates them."""

    integers: Int8[ndarray, "N E"]
    scale: Float32[ndarray, " N"]
    error: Float32[ndarray, " N"]
    """Length of the difference between each vector and its approximation."""

    def __len__(self) -> int:
        return len(self.scale)


def encode(vectors: Vectors) -> Codes:
    """The eight-bit codes of vectors.

    >>> encode(np.array([[1, 0.5]], dtype=np.float32)).integers
    array([[127,  64]], dtype=int8)
    """
    full = np.asarray(vectors, dtype=np.float32)
    scale = np.maximum(np.abs(full).max(axis=1), np.finfo(np.float32).tiny) / np.float32(_LARGEST)
    integers = np.rint(full / scale[:, None]).astype(np.int8)
    error = np.linalg.norm(full - integers * scale[:, None], axis=1)
    return Codes(integers, scale, error.astype(np.float32))


def nearest(
    vectors: Vectors,
    queries: Float32[ndarray, "Q E"],
    *,
    top: int,
    among: Int64[ndarray, " M"] | None = None,
    codes: Codes | None = None,
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    """Rows and inner products of the nearest vectors, sorted by decreasing inner product; equal ones are sorted by row.

    K is the smaller one of `top` and the number of vectors. Vectors whose product is NaN are not found; missing rows are -1.

    Args:
        vectors: unit vectors. They are read chunk by chunk, so that memory does not grow with their number.
        queries: unit vectors.
        top: maximum number of hits per query.
        among: rows to search; None for all rows.
        codes: eight-bit codes of the vectors. They are used only if the CPU has fast int8 instructions.

    >>> nearest(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[1]], top=1)[0]
    array([[1]])
    """
    num = len(vectors) if among is None else len(among)
    kept = min(top, num)
    rows, scores = np.full((len(queries), kept), -1), np.full((len(queries), kept), -np.inf, dtype=np.float32)
    is_coded = codes is not None and num >= max(_FEW, top) and has_fast_int8() and is_exact()
    for start in range(0, len(queries) if kept else 0, _QUERIES):
        part = slice(start, start + _QUERIES)
        candidates = _Candidates(vectors, queries[part], kept)
        if (
            codes is None
            or not is_coded
            or not candidates.offer_all(_by_codes(codes, queries[part], among), _MOST_LEFT)
        ):
            candidates = _Candidates(vectors, queries[part], kept)
            candidates.offer_all(_by_products(vectors, queries[part], among))
        rows[part], scores[part] = candidates.ranked()
    return rows, scores


_Tile: TypeAlias = tuple[Int64[ndarray, " C"], Float32[ndarray, "Q C"], Float32[ndarray, " Q"]]
"""Rows of the vectors, their approximate products with each query, and the maximum error of the products of each query."""


def _by_products(
    vectors: Vectors, queries: Float32[ndarray, "Q E"], among: Int64[ndarray, " M"] | None
) -> Iterator[_Tile]:
    num_queries, dim = queries.shape
    slack = np.full(num_queries, dim * np.finfo(np.float32).eps + 1e-6, dtype=np.float32)
    for places, chunk in _chunks(vectors, among, min(_CHUNK, max(_SMALLEST_TILE, _TILE // num_queries))):
        yield places, float_products(queries, chunk), slack


def _by_codes(codes: Codes, queries: Float32[ndarray, "Q E"], among: Int64[ndarray, " M"] | None) -> Iterator[_Tile]:
    encoded = encode(queries)
    size = max(_SMALLEST_TILE, _TILE // len(queries))
    sides = (_chunks(side, among, size) for side in (codes.integers, codes.scale, codes.error))
    for (places, integers), (_, scale), (_, errors) in zip(*sides, strict=True):
        error = float(np.fmax.reduce(errors))
        products = integer_products(encoded.integers, integers)
        products *= scale
        products *= encoded.scale[:, None]
        yield places, products, (encoded.error * (1 + error) + error + _ROUNDING).astype(np.float32)


class _Candidates:
    """Collects the vectors that can be among the K nearest of each query, from tiles of approximate products."""

    def __init__(self, vectors: Vectors, queries: Float32[ndarray, "Q E"], top: int) -> None:
        self._vectors, self._queries, self._top = vectors, queries, top
        num_queries = len(queries)
        self._best = np.full((num_queries, top), -np.inf, dtype=np.float32)
        """The best approximate products of those offered before the last merge, in no order."""
        self._unmerged: list[tuple[Int64[ndarray, " P"], Float32[ndarray, " P"]]] = []
        self._num_unmerged = 0
        self._slack = np.zeros(num_queries, dtype=np.float32)
        self._num_pairs, self._num_left = 0, 0
        self._pending: list[tuple[Int64[ndarray, " P"], Int64[ndarray, " P"], Float32[ndarray, " P"]]] = []
        self._num_pending = 0
        self._rows = np.full((num_queries, top), -1)
        self._scores = np.full((num_queries, top), -np.inf, dtype=np.float32)

    def offer_all(self, tiles: Iterator[_Tile], most_left: float = 1.0) -> bool:
        """Collect the candidates of all tiles; False as soon as more than this share of the pairs are candidates."""
        return all(self.offer(*tile, most_left) for tile in tiles)

    def offer(
        self,
        places: Int64[ndarray, " C"],
        products: Float32[ndarray, "Q C"],
        slack: Float32[ndarray, " Q"],
        most_left: float,
    ) -> bool:
        """Collect the candidates of a tile, and score those collected when there are many; False if more are left."""
        if np.isnan(products.min()):
            products = np.where(np.isnan(products), -np.inf, products).astype(np.float32)
        self._slack = np.maximum(self._slack, slack)
        floor = self._floor()
        if len(places) >= self._top and not np.isfinite(floor).all():
            tops = np.partition(products, -self._top, axis=1)[:, -self._top]
            floor = np.maximum(floor, tops - 2 * self._slack)
        is_left = products >= np.maximum(floor, _LOWEST)[:, None]
        self._num_pairs, self._num_left = (
            self._num_pairs + is_left.size,
            self._num_left + int(np.count_nonzero(is_left)),
        )
        if self._num_left > most_left * self._num_pairs + 4 * self._rows.size:
            return False
        query, column = np.divmod(np.flatnonzero(is_left), len(places))
        product = products[query, column]
        self._unmerged.append((query, product))
        self._num_unmerged += len(query)
        if self._num_unmerged >= self._best.size or not np.isfinite(floor).all():
            self._merge()
        self._pending.append((query, places[column], product))
        self._num_pending += len(query)
        most = max(_PAIRS, 4 * self._rows.size)
        if self._num_pending > most:
            self._prune()
            if self._num_pending > most // 2:  # Many products differ by less than their errors.
                self._score()
        return True

    def ranked(self) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
        """Rows and scores of the nearest of all collected candidates."""
        self._score()
        return self._rows, self._scores

    def _floor(self) -> Float32[ndarray, " Q"]:
        floor: Float32[ndarray, " Q"] = self._best.min(axis=1) - 2 * self._slack
        return floor

    def _merge(self) -> None:
        """Raise the floor. With few new products it would rise little, and partitioning takes time."""
        query, product = (np.concatenate(side) for side in zip(*self._unmerged, strict=True))
        self._unmerged, self._num_unmerged = [], 0
        ends = np.cumsum(np.bincount(query, minlength=len(self._best)))
        for best, new in zip(self._best, np.split(product[np.argsort(query, kind="stable")], ends[:-1]), strict=True):
            if len(new):
                best[:] = np.partition(np.concatenate([best, new]), len(new))[len(new) :]

    def _prune(self) -> None:
        """Drop the collected candidates that cannot be among the nearest any more."""
        if self._unmerged:
            self._merge()
        query, row, product = (np.concatenate(side) for side in zip(*self._pending, strict=True))
        is_near = product >= self._floor()[query]
        self._pending, self._num_pending = [(query[is_near], row[is_near], product[is_near])], int(is_near.sum())

    def _score(self) -> None:
        """Score the collected candidates and keep the nearest."""
        if not self._pending:
            return
        self._prune()
        ((query, row, _),), self._pending, self._num_pending = self._pending, [], 0
        score = scores_of(self._vectors, self._queries, query, row)
        known_query, known = np.nonzero(self._rows >= 0)
        self._rows, self._scores = rank(
            np.concatenate([known_query, query]),
            np.concatenate([self._rows[known_query, known], row]),
            np.concatenate([self._scores[known_query, known], score]),
            num_queries=len(self._queries),
            top=self._top,
        )


def scores_of(
    vectors: Vectors, queries: Float32[ndarray, "Q E"], query: Int64[ndarray, " P"], row: Int64[ndarray, " P"]
) -> Float32[ndarray, " P"]:
    """The inner product of each pair, in float32. It depends only on the two vectors of the pair."""
    score = np.empty(len(row), dtype=np.float32)
    order = np.argsort(query, kind="stable")
    ends = np.searchsorted(query[order], np.arange(len(queries)), side="right")
    size = max(1, _SCORED_NUMBERS // queries.shape[1])
    for pairs, one_query in zip(np.split(order, ends[:-1]), queries.astype(np.float64), strict=True):
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            # Convert first: the buffers of einsum would split the sums of long vectors.
            score[part] = np.einsum("pe,e->p", np.asarray(vectors[row[part]], dtype=np.float64), one_query)
    return score


def rank(
    query: Int64[ndarray, " P"],
    row: Int64[ndarray, " P"],
    score: Float32[ndarray, " P"],
    *,
    num_queries: int,
    top: int,
) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
    """Rows and scores of the best pairs of each query, sorted by (-score, row). Missing rows are -1; NaN scores are dropped.

    >>> rank(np.array([0, 0, 0]), np.array([8, 3, 5]), np.float32([1, 1, 2]), num_queries=1, top=2)[0]
    array([[5, 3]])
    """
    query, row, score = (side[~np.isnan(score)] for side in (query, row, score))
    order = np.lexsort((row, -score, query))
    query, row, score = query[order], row[order], score[order]
    position = np.arange(len(query)) - np.searchsorted(query, np.arange(num_queries))[query]
    kept = position < top
    rows, scores = np.full((num_queries, top), -1), np.full((num_queries, top), -np.inf, dtype=np.float32)
    rows[query[kept], position[kept]], scores[query[kept], position[kept]] = row[kept], score[kept]
    return rows, scores


def _chunks(
    rows: ndarray, among: Int64[ndarray, " M"] | None, size: int
) -> Iterator[tuple[Int64[ndarray, " C"], ndarray]]:
    """The row numbers and the values of each chunk of an array, or of the rows `among` of it."""
    num = len(rows) if among is None else len(among)
    for start in range(0, num, size):
        end = min(start + size, num)
        if among is None:
            yield np.arange(start, end), rows[start:end]
        else:
            yield among[start:end], rows[among[start:end]]
