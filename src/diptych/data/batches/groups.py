"""Which rows of a batch are positives of each other, also where processes share them. Shapes: B rows, K marks a row."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int64
from torch import Tensor

from diptych.core.distributed import Ranks
from diptych.core.randomness import stable_hash

Positives: TypeAlias = Literal["pair", "caption", "class"]
"""`pair`: a picture and its own caption only. `caption`: also rows that repeat a picture or a caption. `class`: also rows of
one label."""


def group_rows(
    keys: Sequence[str], captions: Sequence[str], labels: Sequence[int | None], *, positives: Positives
) -> list[int]:
    """A group id a row: rows that share an image, a caption or a class, directly or through others, share the id.

    >>> group_rows("abc", ["a dog", "a cat", "a dog"], [None] * 3, positives="caption")
    [0, 1, 0]
    """
    return _united(_marks(*row, positives) for row in zip(keys, captions, labels, strict=True))


def hash_positive_keys(
    keys: Sequence[str], captions: Sequence[str], labels: Sequence[int | None], *, positives: Positives
) -> Int64[Tensor, "B K"]:
    """The same by numbers that mean the same in every process: rows that share one are positives of each other."""
    marks = [
        [stable_hash(*mark) - 2**63 for mark in _marks(*row, positives)]
        for row in zip(keys, captions, labels, strict=True)
    ]
    return torch.tensor(marks, dtype=torch.int64)


def positive_group_ids(marks: Int64[Tensor, "B K"], ranks: Ranks) -> Int64[Tensor, " B"]:
    """A group id for each of this rank's rows, which means the same on all ranks; every rank has as many rows.

    >>> positive_group_ids(torch.tensor([[7, 2], [8, 1], [9, 2]]), Ranks(rank=0, size=1))
    tensor([0, 1, 0])
    """
    here = ranks.rows(len(marks))
    if not marks.shape[1]:
        return torch.arange(here.start, here.stop)
    return torch.tensor(_united(ranks.gather_rows(marks).tolist()))[here]


def _marks(key: str, caption: str, label: int | None, positives: Positives) -> list[tuple[str | int, ...]]:
    """As many for each row of a kind."""
    if positives == "pair":
        return []
    marks: list[tuple[str | int, ...]] = [("key", key), ("caption", " ".join(caption.lower().split()))]
    if positives == "class":
        marks.append(("key", key) if label is None else ("label", label))
    return marks


def _united(marks_of_rows: Iterable[Iterable[Hashable]]) -> list[int]:
    """For each row the number of a row that it shares a mark with, directly or through others: the same for all of them."""
    parent: list[int] = []

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[Hashable, int] = {}
    for row, marks in enumerate(marks_of_rows):
        parent.append(row)
        for mark in marks:
            parent[root(row)] = root(first_with.setdefault(mark, row))
    return [root(row) for row in range(len(parent))]
