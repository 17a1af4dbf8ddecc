"""Find connected components of similar vectors, exactly or with tables of sign bits.

Shapes: N vectors, R rows, C columns, P pairs, E embedding.
"""

from math import sqrt

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from diptych.core.components import Components
from diptych.core.lists import chunks
from diptych.index.sign_tables import CenteredVectors, candidates, plan_tables
from diptych.index.unit_vectors import UnitVectors

EXACT_UP_TO = 20_000
"""Maximum number of vectors for which all pairs are compared."""
ROUNDING = 1e-6
"""Upper bound of the rounding error of a cosine of float32 vectors. That of a vector with itself may be this much below 1."""
_CHUNK = 2048
"""Number of vectors that are compared at a time."""
_PAIRS = 2**16
"""Number of pairs that are collected before their cosines are computed."""
_PAIRS_AT_ONCE = 2048
"""Number of pairs whose cosines are computed at a time."""
_REPRESENTATIVES = 128
"""Number of random vectors, and of vectors closest to the mean, that are compared with all others."""
_MEAN_SAMPLE = 20_000
"""Maximum number of vectors from which the mean is computed."""
_MIN_COSINE = 0.5
"""If the threshold is not above this cosine, all pairs are compared."""
_DIM_COST = 64
"""Cost of a pair of vectors in addition to the product, as a number of dimensions."""


class CosineJoiner:
    """Joins the components of candidate pairs whose cosine is at least a threshold. Pairs in one component are not compared."""

    def __init__(self, unit: UnitVectors, components: Components, threshold: float) -> None:
        self._unit, self._components, self._threshold = unit, components, threshold - ROUNDING
        self._pending: list[tuple[Int64[ndarray, " P"], Int64[ndarray, " P"]]] = []
        self._num_pending = 0

    def all_pairs(self, rows: Int64[ndarray, " R"], columns: Int64[ndarray, " C"]) -> None:
        """Compare each content in `rows` with each content in `columns`."""
        rows, columns = self._components.apart(rows, columns)
        if len(rows) and len(columns):
            near = self._unit[rows] @ self._unit[columns].T >= self._threshold
            self._components.join_block(near, rows, columns)

    def block(self, near: Bool[ndarray, "R C"], rows: Int64[ndarray, " R"], columns: Int64[ndarray, " C"]) -> None:
        """Add candidates as a block of the adjacency matrix. If the first row and column are equal, all of them must be."""
        if np.count_nonzero(near) > max(_PAIRS_AT_ONCE, near.size // 4):
            near = near & (self._components.find(rows)[:, None] != self._components.find(columns))
            if near.any():
                cosines = self._unit[rows] @ self._unit[columns].T
                self._components.join_block(near & (cosines >= self._threshold), rows, columns)
            return
        inner, across = np.nonzero(near)
        if rows[0] == columns[0]:
            inner, across = np.stack([inner, across])[:, inner < across]
        self.pairs(rows[inner], columns[across])

    def pairs(self, one: Int64[ndarray, " P"], other: Int64[ndarray, " P"]) -> None:
        """Add candidates as pairs. They are compared when enough pairs are collected."""
        self._pending.append((one, other))
        self._num_pending += len(one)
        if self._num_pending >= _PAIRS:
            self.flush()

    def flush(self) -> None:
        """Compare the collected pairs."""
        if not self._pending:
            return
        one, other = (np.concatenate(side) for side in zip(*self._pending, strict=True))
        self._pending, self._num_pending = [], 0
        one, other = self._apart(one, other)
        for part in chunks(len(one), _PAIRS_AT_ONCE):
            first, second = self._apart(one[part], other[part])
            is_near = np.einsum("pe,pe->p", self._unit[first], self._unit[second]) >= self._threshold
            self._components.join(first[is_near], second[is_near])

    def _apart(
        self, one: Int64[ndarray, " P"], other: Int64[ndarray, " P"]
    ) -> tuple[Int64[ndarray, " P2"], Int64[ndarray, " P2"]]:
        """The pairs whose contents are in different components."""
        is_apart = self._components.find(one) != self._components.find(other)
        return one[is_apart], other[is_apart]


def join_similar(
    unit: UnitVectors, components: Components, threshold: float, *, exact_up_to: int = EXACT_UP_TO
) -> None:
    """Join all contents whose vectors have at least the cosine `threshold`.

    Up to `exact_up_to` contents, all pairs are compared. With more contents, each pair exactly at the threshold is found with a
    probability of at least 99.9 %, and more similar pairs with a higher probability (`sign_tables.py`). All pairs are also
    compared if the tables would not be faster. The result is deterministic.
    """
    is_compared = unit.is_valid() & (~unit.is_zero() | (threshold <= _MIN_COSINE))
    joiner, contents = CosineJoiner(unit, components, threshold), np.flatnonzero(is_compared)
    if len(contents) <= exact_up_to or threshold <= _MIN_COSINE:
        _compare_all(joiner, components, contents)
        return
    rng, distance = np.random.default_rng(0), sqrt(max(0.0, 2 - 2 * threshold + 2 * ROUNDING))
    vectors = _centered(unit, contents, rng)
    selected, min_length = _representatives(vectors.lengths, rng)
    for part in chunks(len(contents), _CHUNK):  # This often joins a large share of the contents.
        joiner.all_pairs(contents[selected], contents[part])
    roots = components.find(contents)
    outside = np.count_nonzero(roots != np.bincount(roots).argmax())
    plan = plan_tables(vectors, min_length=min_length, distance=distance, rng=rng)
    if plan is None or outside * (1 - outside / len(contents) / 2) * (unit.dim + _DIM_COST) < plan.cost:
        _compare_all(joiner, components, contents)
        return
    for near, rows, columns in candidates(vectors, components, plan, distance=distance, rng=rng):
        joiner.block(near, rows, columns)
    joiner.flush()


def _compare_all(joiner: CosineJoiner, components: Components, contents: Int64[ndarray, " N"]) -> None:
    """Compare all pairs except those within the largest component."""
    if not len(contents):
        return
    roots = components.find(contents)
    is_outside = roots != np.bincount(roots).argmax()
    contents = np.concatenate([contents[is_outside], contents[~is_outside]])
    for top in range(0, np.count_nonzero(is_outside), _CHUNK):
        for left in range(top, len(contents), _CHUNK):
            joiner.all_pairs(contents[top : top + _CHUNK], contents[left : left + _CHUNK])


def _centered(unit: UnitVectors, contents: Int64[ndarray, " N"], rng: np.random.Generator) -> CenteredVectors:
    """The vectors of contents, centered by the mean of a sample."""
    sample = rng.choice(contents, min(len(contents), _MEAN_SAMPLE), replace=False)
    mean = np.mean([unit[sample[part]].mean(axis=0) for part in chunks(len(sample), _CHUNK)], axis=0)
    lengths = [np.linalg.norm(unit[contents[part]] - mean, axis=1) for part in chunks(len(contents), _CHUNK)]
    return CenteredVectors(unit, contents, mean, np.concatenate(lengths))


def _representatives(lengths: Float32[ndarray, " N"], rng: np.random.Generator) -> tuple[Int64[ndarray, " R"], float]:
    """Positions of random contents and of those closest to the mean, and the minimum distance of all others from the mean.

    Tables find pairs of vectors close to the mean with a lower probability. These contents are therefore compared with all.
    """
    order = np.argsort(lengths)
    closest, others = order[:_REPRESENTATIVES], order[_REPRESENTATIVES:]
    random = rng.choice(others, min(len(others), _REPRESENTATIVES), replace=False)
    return np.concatenate([closest, random]), float(lengths[others].min(initial=np.inf))
