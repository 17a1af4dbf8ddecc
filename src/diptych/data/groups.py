"""Which rows of a batch are positives of each other."""

from collections.abc import Hashable, Sequence
from typing import Literal, TypeAlias

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
    if positives == "pair":
        return list(range(len(keys)))
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[Hashable, int] = {}
    for row, (key, caption, label) in enumerate(zip(keys, captions, labels, strict=True)):
        marks: list[Hashable] = [("key", key), ("caption", " ".join(caption.lower().split()))]
        if positives == "class" and label is not None:
            marks.append(("label", label))
        for mark in marks:
            parent[root(row)] = root(first_with.setdefault(mark, row))
    return [root(row) for row in range(len(keys))]
