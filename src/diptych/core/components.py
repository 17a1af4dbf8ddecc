"""Connected components of graphs whose edge lists would not fit in memory.

Shapes: N members, M edges, K keys per member, R rows and C columns of a block of the adjacency matrix.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int64, UInt64
from numpy import ndarray

_ROWS = 64
_COLUMNS = 4096


class Components:
    """Connected components of a graph with members 0 to N - 1 (union-find). Edges can be added in any order.

    >>> components = Components(5)
    >>> components.join(np.array([3, 0]), np.array([1, 3]))
    >>> components.groups()
    [[0, 1, 3]]
    """

    def __init__(self, num: int) -> None:
        self._parent: Int64[ndarray, " N"] = np.arange(num)
        """For each member a smaller one of the same component; for the smallest, itself."""

    def find(self, members: Int64[ndarray, " M"]) -> Int64[ndarray, " M"]:
        """Return the smallest member of the component of each given member."""
        nodes = members
        while not np.array_equal(above := self._parent[nodes], two_above := self._parent[above]):
            self._parent[nodes] = nodes = (
                two_above  # Halve the paths, so that a chain takes a logarithmic number of rounds.
            )
        self._parent[members] = above
        return above

    def first(self) -> Int64[ndarray, " N"]:
        """Return the smallest member of the component of every member."""
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above
        return self._parent.copy()

    def join(self, one: Int64[ndarray, " M"], other: Int64[ndarray, " M"]) -> None:
        """Add the edges (one[i], other[i]).

        Each round links component roots to smaller roots and keeps the edges that still connect different components.
        """
        while len(one):
            roots = np.sort(np.stack([self.find(one), self.find(other)]), axis=0)
            one, other = roots[:, roots[0] != roots[1]]
            self._parent[other] = one

    def join_block(self, near: Bool[ndarray, "R C"], rows: Int64[ndarray, " R"], columns: Int64[ndarray, " C"]) -> None:
        """Add the edges of a block of the adjacency matrix.

        Args:
            near: whether there is an edge between a row and a column.
            rows: the members of the rows.
            columns: the members of the columns.
        """
        some, others = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        self.join(rows[some], columns[near.argmax(axis=1)[some]])  # One edge per row and column is usually enough.
        self.join(rows[near.argmax(axis=0)[others]], columns[others])
        inner, across = np.nonzero(near & (self.find(rows)[:, None] != self.find(columns)))
        self.join(rows[inner], columns[across])

    def apart(
        self, rows: Int64[ndarray, " R"], columns: Int64[ndarray, " C"]
    ) -> tuple[Int64[ndarray, " R2"], Int64[ndarray, " C2"]]:
        """Return the rows and columns of a block whose edges could still join components.

        If all columns belong to one component, the rows of that component are removed, and vice versa.
        """
        of_rows, of_columns = self.find(rows), self.find(columns)
        if len(columns) and (of_columns == of_columns[0]).all():
            rows, of_rows = rows[of_rows != of_columns[0]], of_rows[of_rows != of_columns[0]]
        if len(rows) and (of_rows == of_rows[0]).all():
            columns = columns[of_columns != of_rows[0]]
        return rows, columns

    def groups(self) -> list[list[int]]:
        """Return the components with at least two members, ordered by their smallest members."""
        first = self.first()
        members = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
        members = members[np.argsort(first[members], kind="stable")]
        starts = np.flatnonzero(np.diff(first[members])) + 1
        return [group.tolist() for group in np.split(members, starts) if len(group)]


def connected_ids(keys: Int64[ndarray, "N K"]) -> Int64[ndarray, " N"]:
    """Return for each row the first row of its component, where rows that share a key are connected.

    >>> connected_ids(np.array([[7, 2], [8, 1], [9, 2]]))
    array([0, 1, 0])
    """
    components = Components(len(keys))
    if keys.size:
        _, first, key_idx = np.unique(keys, return_index=True, return_inverse=True)
        rows = np.arange(keys.size) // keys.shape[1]
        components.join(rows, first[key_idx.ravel()] // keys.shape[1])
    return components.first()


def bucket_blocks(
    keys: UInt64[ndarray, " N"], roots: Int64[ndarray, " N"]
) -> tuple[Int64[ndarray, " M"], Iterator[tuple[slice, slice]]]:
    """Return an order of the members, and blocks that cover each pair with equal keys and different roots.

    Blocks are slices of rows and columns in that order. Members without such a pair are left out of the order. The first column
    of a block is its first row or a later one. Blocks also contain other pairs: a member with itself, and pairs of neighboring
    keys or of equal roots. The size of a block is bounded, and the number of blocks is linear in N while few members share a
    key.

    Args:
        keys: members with equal keys are candidate pairs.
        roots: the component of each member.

    >>> order, blocks = bucket_blocks(np.uint64([7, 5, 7]), np.arange(3))
    >>> order.tolist(), list(blocks)
    ([0, 2], [(slice(0, 2, None), slice(0, 2, None))])
    """
    num_roots = int(roots.max(initial=0)) + 1
    order = np.argsort(keys)
    starts, _ = _equal_ranges(keys[order])
    order = order[np.argsort(starts * num_roots + roots[order])]  # Two argsorts are much faster than `np.lexsort`.
    starts, ends = _equal_ranges(keys[order])
    order = order[roots[order[starts]] != roots[order[ends - 1]]]  # Buckets of one component are complete.
    return order, _blocks(keys[order], roots[order])


def _blocks(keys: UInt64[ndarray, " M"], roots: Int64[ndarray, " M"]) -> Iterator[tuple[slice, slice]]:
    starts, ends = _equal_ranges(keys)
    _, root_ends = _equal_ranges(roots, starts)
    for top in range(0, len(keys), _ROWS):
        bottom = min(top + _ROWS, len(keys))
        left = int(root_ends[top]) if root_ends[top] >= bottom else top
        stop = int(ends[bottom - 1])
        for start in range(left, stop, _COLUMNS):
            yield slice(top, bottom), slice(start, min(start + _COLUMNS, stop))


def _equal_ranges(*values: ndarray) -> tuple[Int64[ndarray, " N"], Int64[ndarray, " N"]]:
    """Return for each position the start and the end of the range of consecutive equal values that contains it."""
    is_start = np.ones(len(values[0]), dtype=np.bool)
    if len(is_start):
        is_start[1:] = np.any([value[1:] != value[:-1] for value in values], axis=0)
    starts, range_idx = np.flatnonzero(is_start), np.cumsum(is_start) - 1
    return starts[range_idx], np.append(starts[1:], len(is_start))[range_idx]
