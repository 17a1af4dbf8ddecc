"""Vectors that are nearly the same. Shapes: N vectors, E embedding."""

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

_CHUNK = 4096


def alike(vectors: Float32[ndarray, "N E"], threshold: float) -> list[list[int]]:
    """Groups of two and more, each of whose members has a neighbour there of at least this cosine; the first member's order.

    >>> alike(np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32), 0.9)
    [[0, 2]]
    """
    first = np.arange(len(vectors))

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = int(first[row])
        return row

    for top in range(0, len(vectors), _CHUNK):
        for left in range(top, len(vectors), _CHUNK):
            near = vectors[top : top + _CHUNK] @ vectors[left : left + _CHUNK].T >= threshold
            for row, column in zip(*np.nonzero(near), strict=True):
                one, other = sorted((root(top + int(row)), root(left + int(column))))
                first[other] = one
    groups: dict[int, list[int]] = {}
    for row in range(len(vectors)):
        groups.setdefault(root(row), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def groups_of_keys(keys: list[list[str]], vectors: Float32[ndarray, "N E"], threshold: float) -> list[list[str]]:
    """The keys of vectors that are alike, then those that share a vector which is like no other.

    >>> groups_of_keys([["a"], ["b", "c"], ["d"]], np.eye(2, dtype=np.float32)[[0, 1, 0]], 0.9)
    [['a', 'd'], ['b', 'c']]
    """
    near = alike(vectors, threshold)
    together = {row for group in near for row in group}
    groups = [[key for row in group for key in keys[row]] for group in near]
    return groups + [shared for row, shared in enumerate(keys) if row not in together and len(shared) > 1]
