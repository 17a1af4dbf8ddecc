"""Search with grouping of near-equal pictures. Shapes: N hits, E embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.deprecation import renamed_parameter
from diptych.core.errors import ConfigError, IndexingError
from diptych.index.entry import SearchHit
from diptych.index.filters import Filter
from diptych.index.protocol import Index

SIMILAR_COSINE = 0.95
"""Default minimum cosine of near-equal pictures. The best value depends on the model: after a short training, all pairs have
higher cosines."""
_WINDOW = 1000
"""Number of hits that are grouped. It does not depend on `top`, so a larger request starts with the same groups."""
_BLOCK = 256
"""Number of vectors that are compared at a time."""
_ROUNDING = 1e-6
"""Upper bound of the rounding error of float32 in the cosine of two equal vectors."""


@dataclass(frozen=True, kw_only=True)
class HitGroup:
    """A hit, and the near-equal hits that are folded into it."""

    hit: SearchHit
    """The best hit of the group."""
    similar: tuple[SearchHit, ...]
    """Near-equal pictures, sorted by decreasing score."""


@renamed_parameter("chosen", "selected")
def search_groups(
    index: Index,
    query: Float32[ndarray, " E"],
    *,
    top: int,
    threshold: float = SIMILAR_COSINE,
    selected: Filter | None = None,
) -> list[HitGroup]:
    """The entries nearest to a query, grouped with near-equal pictures and sorted by decreasing score.

    The best 1,000 hits are grouped, and more if these have fewer than `top` groups. A hit is folded into the best hit that is
    not folded itself and whose vector has at least the cosine `threshold` with its own.

    Args:
        index: the index to search.
        query: a unit vector.
        top: maximum number of groups.
        threshold: minimum cosine of near-equal pictures, within (0, 1].
        selected: filter of the entries to search; None for all entries.

    Raises:
        ConfigError: `threshold` is not within (0, 1].
        IndexingError: the index cannot be read.
    """
    check_threshold(threshold)
    window = _WINDOW
    while True:
        found, vectors = _hits_with_vectors(index, query, window, selected)
        groups = _grouped(found, fold(vectors, threshold))
        if len(groups) >= top or len(found) < window:
            return groups[:top]
        window *= 4


def check_threshold(threshold: float) -> None:
    """Validate the minimum cosine of near-equal pictures.

    Raises:
        ConfigError: `threshold` is not within (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the cosine of near-equal pictures is {threshold}; it must lie within (0, 1]")


def fold(vectors: Float32[ndarray, "N E"], threshold: float) -> Int64[ndarray, " N"]:
    """For each vector, the row into which it is folded: the first near row that is not folded itself, or its own row.

    Args:
        vectors: unit vectors, sorted by decreasing score.
        threshold: minimum cosine of near rows.

    >>> fold(np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32), 0.95)
    array([0, 1, 0])
    """
    into = np.full(len(vectors), -1, dtype=np.int64)
    least = min(threshold, 1 - _ROUNDING)
    for start in range(0, len(vectors), _BLOCK):
        is_near = vectors[start : start + _BLOCK] @ vectors.T >= least
        for row, near in enumerate(is_near, start=start):
            if into[row] < 0:
                into[near & (into < 0)] = row
                into[row] = row
    return into


def _hits_with_vectors(
    index: Index, query: Float32[ndarray, " E"], num: int, selected: Filter | None
) -> tuple[list[SearchHit], Float32[ndarray, "N E"]]:
    (found,) = index.search(query[None], top=num, selected=selected)
    digests = list(dict.fromkeys(hit.entry.digest for hit in found))
    try:
        vectors = index.vectors(digests)
    except IndexingError:  # A picture was removed between the two reads. If the index is damaged, this fails again.
        (found,) = index.search(query[None], top=num, selected=selected)
        vectors = index.vectors(list(dict.fromkeys(hit.entry.digest for hit in found)))
    if not found:
        return found, np.empty((0, index.dim), dtype=np.float32)
    return found, np.stack([vectors[hit.entry.digest] for hit in found])


def _grouped(found: Sequence[SearchHit], into: Int64[ndarray, " N"]) -> list[HitGroup]:
    members: dict[int, list[SearchHit]] = {}
    for hit, row in zip(found, into.tolist(), strict=True):
        members.setdefault(row, []).append(hit)
    return [HitGroup(hit=first, similar=tuple(rest)) for first, *rest in members.values()]
