"""Candidates for similar vectors from the signs of random projections (locality-sensitive hashing, Charikar 2002).

Each table has a key of K bits for each vector. A bit is the sign of g.(u - m) + t*z, where u is the unit vector, m the mean,
and g and z are standard normal. Two vectors at the angle a have equal bits with probability 1 - a/pi, where a is the angle
after the constant t ("offset") is appended to each u - m. Centering spreads collections whose vectors all have a high cosine.
The offset bounds the angle of vectors that are close to the mean.

The distance d of two unit vectors with cosine c is sqrt(2 - 2c), and it is not changed by centering. With r the length of the
shortest vector after centering and appending, cos(a) >= 1 - d^2 / (2 r^2). This bounds the probability p of an equal bit from
below, and L tables find a pair with probability of at least 1 - (1 - p^K)^L.

Members of a bucket are compared by a sketch, a random projection to 64 dimensions that rejects distant pairs. The probability
that it rejects a pair at the distance d is at most `_SKETCH_MISS`. The caller verifies the remaining pairs.
Shapes: N vectors, E embedding, L tables, K bits, S dimensions of the sketch, R rows and C columns of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import acos, ceil, log, log1p, pi, sqrt

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64
from numpy import ndarray

from diptych.core.components import Components, bucket_blocks
from diptych.core.lists import chunks
from diptych.index.unit_vectors import UnitVectors

MISS = 1e-3
"""Probability that a pair exactly at the threshold is not found. More similar pairs are found with higher probability."""
_SKETCH_MISS = 1e-4
_SKETCH = 64
_ROUNDING = 1e-5
"""Rounding error of a squared distance in the sketch."""
_CHUNK = 8192
_BITS_PER_PASS = 512
"""Bits that are computed per pass over the vectors. It bounds the memory for keys."""
_SAMPLE, _OTHERS = 128, 8192
"""The distances between so many vectors and so many others are measured."""
_BINS = 1024
_MIN_BITS, _MAX_BITS = 4, 60
_OFFSETS = (0.0, 0.25, 0.5, 1.0)
"""Values of the offset that are tried, as multiples of the median length of a centered vector."""
_ROW_COST = 20_000
_BLOCK_ROWS = 96
_PAIR_COST = 120
"""Costs of a row in a table and of a pair in a bucket, in multiply-add operations of a large matrix product."""


@dataclass(frozen=True)
class CenteredVectors:
    """The vectors that are compared, and their mean."""

    unit: UnitVectors
    contents: Int64[ndarray, " N"]
    mean: Float32[ndarray, " E"]
    lengths: Float32[ndarray, " N"]
    """The distance of each vector from the mean."""

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, positions: slice | Int64[ndarray, " M"]) -> Float32[ndarray, "M E"]:
        centered = self.unit[self.contents[positions]]
        centered -= self.mean
        return centered


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Which tables find pairs at a distance with probability of at least 1 - `MISS`."""

    bits: int
    tables: int
    offset: float
    cost: float
    """Estimated number of multiply-add operations per vector."""


def plan_tables(
    vectors: CenteredVectors, *, min_length: float, distance: float, draw: np.random.Generator
) -> TablePlan | None:
    """The tables with the least estimated cost, for the distances of a sample of pairs. None if no tables find such pairs.

    Args:
        vectors: the vectors that are compared.
        min_length: the probability holds for pairs of vectors that are at least this long after centering.
        distance: the maximum distance of similar vectors.
        draw: for the sample.
    """
    some, others = (draw.choice(len(vectors), min(num, len(vectors)), replace=False) for num in (_SAMPLE, _OTHERS))
    products = vectors[some] @ vectors[others].T
    ours, theirs = vectors.lengths[some, None], vectors.lengths[None, others]
    is_far = ours**2 + theirs**2 - 2 * products > distance**2  # Similar pairs are joined, and compared no more.
    plans = []
    for factor in _OFFSETS:
        offset = factor * float(np.median(vectors.lengths))
        shortest = sqrt(min_length**2 + offset**2)
        if distance >= 2 * shortest:
            continue
        equal_bit = 1 - acos(1 - distance**2 / (2 * shortest**2)) / pi
        cosines = (products + offset**2) / np.sqrt((ours**2 + offset**2) * (theirs**2 + offset**2))
        angles = np.arccos(np.clip(cosines[is_far], -1, 1))
        counts, edges = np.histogram(1 - angles / pi, bins=_BINS, range=(0, 1))
        for bits in range(_MIN_BITS, _MAX_BITS + 1):
            in_bucket = len(vectors) * float(counts @ edges[1:] ** bits) / is_far.size
            plans.append(_plan(vectors.unit.dim, bits, equal_bit, offset, in_bucket))
    return min(plans, key=lambda plan: plan.cost, default=None)


def _plan(dim: int, bits: int, equal_bit: float, offset: float, in_bucket: float) -> TablePlan:
    """With the number of tables that find a pair, whose bits are equal with the given probability."""
    tables = ceil(log(MISS - _SKETCH_MISS) / log1p(-(equal_bit**bits))) if equal_bit**bits > 1e-12 else 10**9
    compared = min(1.0, in_bucket) * (_BLOCK_ROWS + in_bucket / 2)
    return TablePlan(
        bits=bits, tables=tables, offset=offset, cost=tables * (bits * dim + _ROW_COST + compared * _PAIR_COST)
    )


def candidates(
    vectors: CenteredVectors,
    components: Components,
    plan: TablePlan,
    *,
    distance: float,
    draw: np.random.Generator,
) -> Iterator[tuple[Bool[ndarray, "R C"], Int64[ndarray, " R"], Int64[ndarray, " C"]]]:
    """Blocks of pairs that may be at most the distance apart, with the contents of the rows and columns.

    Pairs that are in one component when a table begins are left out in part.
    """
    contents, sketch = vectors.contents, _Sketch(vectors, distance, draw)
    tables_per_pass = max(1, _BITS_PER_PASS // plan.bits)
    for start in range(0, plan.tables, tables_per_pass):
        num = min(tables_per_pass, plan.tables - start)
        for keys in _keys(vectors, plan, num, draw):
            order, blocks = bucket_blocks(keys, components.first()[contents])
            sketch.sort(order)
            for rows, columns in blocks:
                near = sketch.near(rows, columns)
                num_selves = rows.stop - rows.start if rows.start == columns.start else 0
                if np.count_nonzero(near) > num_selves:
                    yield near, contents[order[rows]], contents[order[columns]]


class _Sketch:
    """A random projection of the vectors. It estimates distances from few numbers."""

    def __init__(self, vectors: CenteredVectors, distance: float, draw: np.random.Generator) -> None:
        matrix = draw.standard_normal((vectors.unit.dim, _SKETCH), dtype=np.float32) / np.float32(sqrt(_SKETCH))
        self._values = np.empty((len(vectors), _SKETCH), dtype=np.float32)
        for part in chunks(len(vectors), _CHUNK):
            self._values[part] = vectors[part] @ matrix
        self._half: Float32[ndarray, " N"] = np.einsum("ns,ns->n", self._values, self._values) / 2
        self._sorted, self._sorted_half = np.zeros((len(vectors) + _SKETCH, _SKETCH), np.float32), self._half
        self._limit = np.float32((distance**2 * _chi_square_quantile() + _ROUNDING) / 2)

    def sort(self, order: Int64[ndarray, " M"]) -> None:
        """Set the vectors that the positions of `near` refer to."""
        np.take(self._values, order, axis=0, out=self._sorted[: len(order)], mode="clip")
        self._sorted_half = self._half[order]

    def near(self, rows: slice, columns: slice) -> Bool[ndarray, "R C"]:
        """Whether |a - b|^2 / 2 = |a|^2 / 2 + |b|^2 / 2 - a.b is below the limit."""
        num = columns.stop - columns.start
        tiles = self._sorted[columns.start : columns.stop + -num % _SKETCH].reshape(-1, _SKETCH, _SKETCH)
        # Products of 64 x 64 x 64 are too small for the threads of BLAS, which would wait for each other.
        products = (tiles @ self._sorted[rows].T).reshape(-1, rows.stop - rows.start)[:num]
        products -= self._sorted_half[columns, None]
        near: Bool[ndarray, "C R"] = products >= self._sorted_half[rows] - self._limit
        return near.T


def _chi_square_quantile() -> float:
    """The quantile of chi-square with `_SKETCH` degrees of freedom, divided by these, that `_SKETCH_MISS` exceeds.

    By Wilson and Hilferty (1931), whose error is far below the 1 % that is added.
    """
    normal_quantile, variance = 3.719, 2 / (9 * _SKETCH)
    return 1.01 * (1 - variance + normal_quantile * sqrt(variance)) ** 3


def _keys(vectors: CenteredVectors, plan: TablePlan, num: int, draw: np.random.Generator) -> UInt64[ndarray, "L N"]:
    """The keys of some tables."""
    matrix = draw.standard_normal((vectors.unit.dim, num * plan.bits), dtype=np.float32)
    offset = np.float32(plan.offset) * draw.standard_normal(num * plan.bits, dtype=np.float32)
    keys = np.empty((num, len(vectors)), dtype=np.uint64)
    padded = np.zeros((_CHUNK, num, 64), dtype=np.bool)
    for part in chunks(len(vectors), _CHUNK):
        projected = vectors[part] @ matrix
        bits = padded[: len(projected)]
        bits[:, :, : plan.bits] = (projected > -offset).reshape(len(projected), num, plan.bits)
        keys[:, part] = np.packbits(bits.reshape(-1)).view(np.uint64).reshape(len(projected), num).T
    return keys
