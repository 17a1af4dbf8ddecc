"""Groups of pictures that are the same, or similar according to the model. Shapes: N contents, E embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64
from numpy import ndarray

from diptych.images.fingerprints import NEAR_BITS

SAME_COSINE = 0.9
"""Minimum cosine of copies of one picture. Near perceptual hashes are not enough: those of plain pictures agree by chance."""
_ROUNDING = 1e-6
"""Rounding error of a cosine of float32 vectors. The cosine of a vector with itself may be below 1 by this amount."""
_CHUNK = 2048

DuplicateKind = Literal["identical files", "same picture", "similar according to this model"]


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A picture of a group."""

    key: str
    cosine: float
    """Cosine with the first picture of the group."""


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Pictures that belong together.

    A group of a looser kind includes one member of each group of a stricter kind: a "same picture" group has one of several
    identical files, and a group of similar pictures has one copy of each picture.
    """

    kind: DuplicateKind
    pictures: tuple[Duplicate, ...]


class _Components:
    """Connected components of a graph. `first` stores the smallest member of each member's component."""

    def __init__(self, num: int) -> None:
        self.first: Int64[ndarray, " N"] = np.arange(num)

    def join(self, one: Int64[ndarray, " M"], other: Int64[ndarray, " M"]) -> None:
        """Add edges. Each round joins components to smaller ones and keeps the edges between different components."""
        while len(one):
            roots = np.sort(np.stack([self.first[one], self.first[other]]), axis=0)
            one, other = roots[:, roots[0] != roots[1]]
            self.first[other] = one
            while not np.array_equal(jumped := self.first[self.first], self.first):
                self.first = jumped

    def join_block(self, near: Bool[ndarray, "R C"], top: int, left: int) -> None:
        """Add the edges of a block of the adjacency matrix, whose first row and column are given."""
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        self.join(top + rows, left + near.argmax(axis=1)[rows])  # One edge of each row and column is usually enough.
        self.join(top + near.argmax(axis=0)[columns], left + columns)
        firsts = self.first[top : top + near.shape[0], None], self.first[None, left : left + near.shape[1]]
        inner, across = np.nonzero(near & (firsts[0] != firsts[1]))
        self.join(top + inner, left + across)

    def groups(self) -> list[list[int]]:
        """Components with at least two members, in the order of their first members."""
        order = np.argsort(self.first, kind="stable")
        starts = np.flatnonzero(np.diff(self.first[order])) + 1
        return [group.tolist() for group in np.split(order, starts) if len(group) > 1]


def duplicate_groups(
    keys: Sequence[Sequence[str]],
    hashes: Sequence[int | None],
    vectors: Float32[ndarray, "N E"],
    threshold: float,
) -> list[DuplicateGroup]:
    """Groups of identical files, then of the same picture, then of similar pictures.

    Args:
        keys: for each content, the files with this content.
        hashes: for each content, the perceptual hash (`images/fingerprints.py`); None if it is unknown.
        vectors: the vector of each content.
        threshold: pictures with at least this cosine are similar; neighbors of neighbors are in one group.

    >>> eye = np.eye(2, dtype=np.float32)[[0, 1, 0, 0]]
    >>> groups = duplicate_groups([["a"], ["b", "c"], ["d"], ["e"]], [7, 1, 7, None], eye, 1.0)
    >>> [(group.kind, [picture.key for picture in group.pictures]) for group in groups]
    [('identical files', ['b', 'c']), ('same picture', ['a', 'd']), ('similar according to this model', ['a', 'e'])]
    """
    if not keys:
        return []
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    known = np.array([value is not None for value in hashes])
    bits = np.array([value or 0 for value in hashes], dtype=np.uint64)
    same, similar = _Components(len(keys)), _Components(len(keys))
    for top in range(0, len(unit), _CHUNK):
        for left in range(top, len(unit), _CHUNK):
            rows, columns = slice(top, top + _CHUNK), slice(left, left + _CHUNK)
            cosine = unit[rows] @ unit[columns].T
            similar.join_block(cosine >= threshold - _ROUNDING, top, left)
            near = (cosine >= SAME_COSINE) & known[rows, None] & known[None, columns]
            if near.any():
                same.join_block(near & _agree(bits[rows], bits[columns]), top, left)
    similar.join(np.arange(len(keys)), same.first)
    groups = [_group("identical files", [(key, 1.0) for key in files]) for files in keys if len(files) > 1]

    def named(kind: DuplicateKind, contents: list[int]) -> DuplicateGroup:
        return _group(kind, [(keys[row][0], float(unit[contents[0]] @ unit[row])) for row in contents])

    groups += [named("same picture", contents) for contents in same.groups()]
    for contents in similar.groups():
        distinct = [row for row in contents if same.first[row] == row]
        if len(distinct) > 1:
            groups.append(named("similar according to this model", distinct))
    return groups


def _group(kind: DuplicateKind, pictures: list[tuple[str, float]]) -> DuplicateGroup:
    return DuplicateGroup(
        kind=kind, pictures=tuple(Duplicate(key=key, cosine=min(1.0, cosine)) for key, cosine in pictures)
    )


def _agree(ours: UInt64[ndarray, " R"], theirs: UInt64[ndarray, " C"]) -> Bool[ndarray, "R C"]:
    return np.bitwise_count(ours[:, None] ^ theirs[None]) <= NEAR_BITS
