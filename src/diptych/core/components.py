"""Connected components of graphs that are too large for lists of edges.

Shapes: N members, M edges, R rows and C columns of a block of the adjacency matrix.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int64, UInt64
from numpy import ndarray

_ROWS = 64
_COLUMNS = 4096


class Components:
    """Connected components of a graph with members 0 to N - 1, to which edges are added in any order.

    >>> components = Components(5)
    >>> components.join(np.array([3, 0]), np.array([1, 3]))
    >>> components.groups()
    [[0, 1, 3]]
    """

    def __init__(self, num: int) -> None:
        self._parent: Int64[ndarray, " N"] = np.arange(num)
        """A smaller member of the same component; the smallest one has itself."""

    def find(self, members: Int64[ndarray, " M"]) -> Int64[ndarray, " M"]:
        """The smallest member of each member's component."""
        roots = self._parent[members]
        while not np.array_equal(above := self._parent[roots], roots):
            roots = above
        self._parent[members] = roots
        return roots

    def first(self) -> Int64[ndarray, " N"]:
        """The smallest member of the component of every member."""
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above
        return self._parent.copy()

    def join(self, one: Int64[ndarray, " M"], other: Int64[ndarray, " M"]) -> None:
        """Add edges. Each round joins components to smaller ones and keeps the edges between different components."""
        while len(one):
            roots = np.sort(np.stack([self.find(one), self.find(other)]), axis=0)
            one, other = roots[:, roots[0] != roots[1]]
            self._parent[other] = one

    def join_block(self, near: Bool[ndarray, "R C"], rows: Int64[ndarray, " R"], columns: Int64[ndarray, " C"]) -> None:
        """Add the edges of a block of the adjacency matrix, whose rows and columns are the given members."""
        some, others = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        self.join(rows[some], columns[near.argmax(axis=1)[some]])  # One edge of each row and column is usually enough.
        self.join(rows[near.argmax(axis=0)[others]], columns[others])
        inner, across = np.nonzero(near & (self.find(rows)[:, None] != self.find(columns)))
        self.join(rows[inner], columns[across])

    def apart(
        self, rows: Int64[ndarray, " R"], columns: Int64[ndarray, " C"]
    ) -> tuple[Int64[ndarray, " R2"], Int64[ndarray, " C2"]]:
        """The rows and columns of a block without those that can add nothing.

        If all columns are in one component, rows of this component are left out, and the other way around.
        """
        of_rows, of_columns = self.find(rows), self.find(columns)
        if len(columns) and (of_columns == of_columns[0]).all():
            rows, of_rows = rows[of_rows != of_columns[0]], of_rows[of_rows != of_columns[0]]
        if len(rows) and (of_rows == of_rows[0]).all():
            columns = columns[of_columns != of_rows[0]]
        return rows, columns

    def groups(self) -> list[list[int]]:
        """Components with at least two members, in the order of their first members."""
        first = self.first()
        members = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
        members = members[np.argsort(first[members], kind="stable")]
        starts = np.flatnonzero(np.diff(first[members])) + 1
        return [group.tolist() for group in np.split(members, starts) if len(group)]


def bucket_blocks(
    keys: UInt64[ndarray, " N"], roots: Int64[ndarray, " N"]
) -> tuple[Int64[ndarray, " M"], Iterator[tuple[slice, slice]]]:
    """An order of the members, and blocks of rows and columns in it that include each pair with equal keys and different roots.

    Members without such a pair are left out of the order. The first column of a block is its first row, or a later one. Blocks
    also include other pairs: pairs of a member with itself, of neighboring keys and of equal roots. Their size is bounded, and
    their number grows with N as long as few members have the same key.

    Args:
        keys: pairs with equal keys are candidates.
        roots: the component of each member.

    >>> order, blocks = bucket_blocks(np.uint64([7, 5, 7]), np.arange(3))
    >>> order.tolist(), list(blocks)
    ([0, 2], [(slice(0, 2, None), slice(0, 2, None))])
    """
    num_roots = int(roots.max(initial=0)) + 1
    order = np.argsort(keys)
    starts, _ = _runs(keys[order])
    order = order[np.argsort(starts * num_roots + roots[order])]  # Two of these are much faster than `np.lexsort`.
    starts, ends = _runs(keys[order])
    order = order[roots[order[starts]] != roots[order[ends - 1]]]  # Buckets of one component are complete.
    return order, _blocks(keys[order], roots[order])


def _blocks(keys: UInt64[ndarray, " M"], roots: Int64[ndarray, " M"]) -> Iterator[tuple[slice, slice]]:
    starts, ends = _runs(keys)
    _, root_ends = _runs(roots, starts)
    for top in range(0, len(keys), _ROWS):
        bottom = min(top + _ROWS, len(keys))
        left = int(root_ends[top]) if root_ends[top] >= bottom else top
        stop = int(ends[bottom - 1])
        for start in range(left, stop, _COLUMNS):
            yield slice(top, bottom), slice(start, min(start + _COLUMNS, stop))


def _runs(*values: ndarray) -> tuple[Int64[ndarray, " N"], Int64[ndarray, " N"]]:
    """For each position, the start and the end of the run of equal values that it is in."""
    is_start = np.ones(len(values[0]), dtype=np.bool)
    if len(is_start):
        is_start[1:] = np.any([value[1:] != value[:-1] for value in values], axis=0)
    starts, run = np.flatnonzero(is_start), np.cumsum(is_start) - 1
    return starts[run], np.append(starts[1:], len(is_start))[run]
