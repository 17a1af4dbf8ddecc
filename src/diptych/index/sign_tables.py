"""Candidates for similar vectors from the signs of random projections (locality-sensitive hashing, Charikar 2002).

Each table has a key of K bits for each vector. A bit is the sign of g.(u - m) + t*z, where u is the unit vector, m the mean,
and g and z are standard normal. Two vectors at the angle a have equal bits with probability 1 - a/pi, where a is the angle
after the constant t ("offset") is appended to each u - m. Centering spreads collections whose vectors all have a high cosine.
The offset bounds the angle of vectors that are close to the mean.

The distance d of two unit vectors with cosine c is sqrt(2 - 2c), and it is not changed by centering. With r the length of the
shortest vector after centering and appending, cos(a) >= 1 - d^2 / (2 r^2). This bounds the probability p of an equal bit from
below, and L tables find a pair with probability of at least 1 - (1 - p^K)^L.

The members of a bucket are compared by a sketch, a random projection to 64 dimensions that rejects distant pairs. It rejects
a pair at the distance d with a probability of at most `_SKETCH_MISS`. The caller verifies the remaining pairs.
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
"""Maximum probability that a pair exactly at the threshold is not found. More similar pairs are missed less often."""
_SKETCH_MISS = 1e-4
"""Maximum probability that the sketch rejects a pair exactly at the threshold."""
_SKETCH = 64
"""Number of dimensions of the sketch."""
_ROUNDING = 1e-5
"""Upper bound of the rounding error of a squared distance in the sketch."""
_CHUNK = 8192
"""Number of vectors that are projected at a time."""
_BITS_PER_PASS = 512
"""Maximum number of bits that are computed per pass over the vectors. It bounds the memory for keys."""
_SAMPLE, _OTHERS = 128, 8192
"""Numbers of vectors between which distances are measured to plan the tables."""
_BINS = 1024
"""Number of bins of the histogram of angles."""
_MIN_BITS, _MAX_BITS = 4, 60
"""Range of the number of bits of a key."""
_OFFSETS = (0.0, 0.25, 0.5, 1.0)
"""Candidates for the offset, as multiples of the median length of a centered vector."""
_ROW_COST = 20_000
_BLOCK_ROWS = 96
_PAIR_COST = 120
"""Cost model of a table. `_ROW_COST` per row and `_PAIR_COST` per compared pair are in multiply-add operations of a large
matrix product; each row is compared with `_BLOCK_ROWS` others in addition to half of its bucket."""


@dataclass(frozen=True)
class CenteredVectors:
    """The vectors to compare, minus their mean."""

    unit: UnitVectors
    contents: Int64[ndarray, " N"]
    """The contents to compare, as positions in `unit`."""
    mean: Float32[ndarray, " E"]
    """Mean of the unit vectors."""
    lengths: Float32[ndarray, " N"]
    """Distance of each vector from the mean."""

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, positions: slice | Int64[ndarray, " M"]) -> Float32[ndarray, "M E"]:
        centered = self.unit[self.contents[positions]]
        centered -= self.mean
        return centered


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Parameters of tables that find pairs at a distance with a probability of at least 1 - `MISS`."""

    bits: int
    """Number of bits of a key."""
    tables: int
    """Number of tables."""
    offset: float
    """Constant that is appended to each centered vector."""
    cost: float
    """Estimated number of multiply-add operations per vector."""


def plan_tables(
    vectors: CenteredVectors, *, min_length: float, distance: float, rng: np.random.Generator
) -> TablePlan | None:
    """The tables with the lowest cost, estimated from the distances of sampled pairs. None if no tables find such pairs.

    Args:
        vectors: the vectors to compare.
        min_length: minimum length of centered vectors for which pairs are found with the probability 1 - `MISS`.
        distance: maximum distance of similar vectors.
        rng: draws the sample.
    """
    sample, others = (rng.choice(len(vectors), min(num, len(vectors)), replace=False) for num in (_SAMPLE, _OTHERS))
    products = vectors[sample] @ vectors[others].T
    lengths, other_lengths = vectors.lengths[sample, None], vectors.lengths[None, others]
    is_far = lengths**2 + other_lengths**2 - 2 * products > distance**2  # Similar pairs are compared once.
    plans = []
    for factor in _OFFSETS:
        offset = factor * float(np.median(vectors.lengths))
        shortest = sqrt(min_length**2 + offset**2)
        if distance >= 2 * shortest:
            continue
        equal_bit = 1 - acos(1 - distance**2 / (2 * shortest**2)) / pi
        cosines = (products + offset**2) / np.sqrt((lengths**2 + offset**2) * (other_lengths**2 + offset**2))
        angles = np.arccos(np.clip(cosines[is_far], -1, 1))
        counts, edges = np.histogram(1 - angles / pi, bins=_BINS, range=(0, 1))
        for bits in range(_MIN_BITS, _MAX_BITS + 1):
            # Enough tables to find pairs whose bits are equal with the probability `equal_bit`.
            tables = ceil(log(MISS - _SKETCH_MISS) / log1p(-(equal_bit**bits))) if equal_bit**bits > 1e-12 else 10**9
            in_bucket = (
                len(vectors) * float(counts @ edges[1:] ** bits) / is_far.size
            )  # Mean number of dissimilar vectors.
            compared = min(1.0, in_bucket) * (_BLOCK_ROWS + in_bucket / 2)
            cost = tables * (bits * vectors.unit.dim + _ROW_COST + compared * _PAIR_COST)
            plans.append(TablePlan(bits=bits, tables=tables, offset=offset, cost=cost))
    return min(plans, key=lambda plan: plan.cost, default=None)


def candidates(
    vectors: CenteredVectors, components: Components, plan: TablePlan, *, distance: float, rng: np.random.Generator
) -> Iterator[tuple[Bool[ndarray, "R C"], Int64[ndarray, " R"], Int64[ndarray, " C"]]]:
    """Yield blocks of pairs whose distance may be at most `distance`, with the contents of the rows and of the columns.

    Pairs whose contents are already in the same component may be left out.
    """
    contents, sketch = vectors.contents, _Sketch(vectors, distance, rng)
    tables_per_pass = max(1, _BITS_PER_PASS // plan.bits)
    for start in range(0, plan.tables, tables_per_pass):
        num = min(tables_per_pass, plan.tables - start)
        for keys in _keys(vectors, plan, num, rng):
            order, blocks = bucket_blocks(keys, components.first()[contents])
            sketch.sort(order)
            for rows, columns in blocks:
                near = sketch.near(rows, columns)
                num_selves = rows.stop - rows.start if rows.start == columns.start else 0
                if np.count_nonzero(near) > num_selves:
                    yield near, contents[order[rows]], contents[order[columns]]


class _Sketch:
    """A random projection of the vectors to `_SKETCH` dimensions, which estimates distances."""

    def __init__(self, vectors: CenteredVectors, distance: float, rng: np.random.Generator) -> None:
        matrix = rng.standard_normal((vectors.unit.dim, _SKETCH), dtype=np.float32) / np.float32(sqrt(_SKETCH))
        self._values = np.empty((len(vectors), _SKETCH), dtype=np.float32)
        for part in chunks(len(vectors), _CHUNK):
            self._values[part] = vectors[part] @ matrix
        self._half: Float32[ndarray, " N"] = np.einsum("ns,ns->n", self._values, self._values) / 2
        self._sorted, self._sorted_half = np.zeros((len(vectors) + _SKETCH, _SKETCH), np.float32), self._half
        self._limit = np.float32((distance**2 * _chi_square_quantile() + _ROUNDING) / 2)

    def sort(self, order: Int64[ndarray, " M"]) -> None:
        """Arrange the vectors in an order. The slices of `near` refer to it."""
        np.take(self._values, order, axis=0, out=self._sorted[: len(order)], mode="clip")
        self._sorted_half = self._half[order]

    def near(self, rows: slice, columns: slice) -> Bool[ndarray, "R C"]:
        """Whether |a - b|^2 / 2 = |a|^2 / 2 + |b|^2 / 2 - a.b is below the limit, for each row a and column b."""
        num = columns.stop - columns.start
        tiles = self._sorted[columns.start : columns.stop + -num % _SKETCH].reshape(-1, _SKETCH, _SKETCH)
        # Products of 64 x 64 x 64 are small enough that BLAS does not use threads, which would wait for each other.
        products = (tiles @ self._sorted[rows].T).reshape(-1, rows.stop - rows.start)[:num]
        products -= self._sorted_half[columns, None]
        near: Bool[ndarray, "C R"] = products >= self._sorted_half[rows] - self._limit
        return near.T


def _chi_square_quantile() -> float:
    """The 1 - `_SKETCH_MISS` quantile of chi-square with `_SKETCH` degrees of freedom, divided by the degrees of freedom.

    It uses the approximation by Wilson and Hilferty (1931), whose error is far below the 1 % that is added.
    """
    normal_quantile, variance = 3.719, 2 / (9 * _SKETCH)
    return 1.01 * (1 - variance + normal_quantile * sqrt(variance)) ** 3


def _keys(vectors: CenteredVectors, plan: TablePlan, num: int, rng: np.random.Generator) -> UInt64[ndarray, "L N"]:
    """The keys of `num` tables."""
    matrix = rng.standard_normal((vectors.unit.dim, num * plan.bits), dtype=np.float32)
    offset = np.float32(plan.offset) * rng.standard_normal(num * plan.bits, dtype=np.float32)
    keys = np.empty((num, len(vectors)), dtype=np.uint64)
    padded = np.zeros((_CHUNK, num, 64), dtype=np.bool)
    for part in chunks(len(vectors), _CHUNK):
        projected = vectors[part] @ matrix
        bits = padded[: len(projected)]
        bits[:, :, : plan.bits] = (projected > -offset).reshape(len(projected), num, plan.bits)
        keys[:, part] = np.packbits(bits.reshape(-1)).view(np.uint64).reshape(len(projected), num).T
    return keys
