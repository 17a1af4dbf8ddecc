"""Determine which rows of a batch are positives of each other, within one process or across ranks.

Shapes: B rows, K positive keys per row.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import count
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from diptych.core.components import connected_ids
from diptych.core.randomness import stable_hash
from diptych.device.distributed import Ranks

Positives: TypeAlias = Literal["pair", "caption", "class"]
"""Which rows are positives of each other. With `pair`, an image has one positive, its own caption. With `caption`, rows that
share an image or a caption are positives, too; with `class`, also rows that share a label."""


def group_rows(
    keys: Sequence[str], captions: Sequence[str], labels: Sequence[int | None], *, positives: Positives
) -> list[int]:
    """Return a group id for each row; rows that share an image, caption or class, directly or through others, get the same id.

    >>> group_rows("abc", ["a dog", "a cat", "a dog"], [None] * 3, positives="caption")
    [0, 1, 0]
    """
    number_of_key = defaultdict[Hashable, int](count().__next__)
    rows = zip(keys, captions, labels, strict=True)
    numbers = np.fromiter((number_of_key[key] for row in rows for key in _positive_keys(*row, positives)), np.int64)
    return connected_ids(numbers.reshape(len(keys), -1 if len(keys) else 0)).tolist()


def hash_positive_keys(
    keys: Sequence[str], captions: Sequence[str], labels: Sequence[int | None], *, positives: Positives
) -> Int64[Tensor, "B K"]:
    """Return the positive keys of each row as 64-bit hashes; rows that share a hash are positives of each other.

    The hashes are the same in every process. K is 0 if `positives` is "pair".
    """
    hashes = [
        [stable_hash(*key) - 2**63 for key in _positive_keys(*row, positives)]
        for row in zip(keys, captions, labels, strict=True)
    ]
    return torch.tensor(hashes, dtype=torch.int64)


def positive_group_ids(positive_keys: Int64[Tensor, "B K"], ranks: Ranks) -> Int64[Tensor, " B"]:
    """Return a group id for each row of this rank; ids are consistent across ranks, which must have the same number of rows.

    >>> positive_group_ids(torch.tensor([[7, 2], [8, 1], [9, 2]]), Ranks(rank=0, size=1))
    tensor([0, 1, 0])
    """
    own = ranks.rows(len(positive_keys))
    if not positive_keys.shape[1]:
        return torch.arange(own.start, own.stop)
    return torch.from_numpy(connected_ids(ranks.gather_rows(positive_keys).cpu().numpy()))[own]


def _positive_keys(key: str, caption: str, label: int | None, positives: Positives) -> list[tuple[str | int, ...]]:
    """Return the keys of one row. Their number depends only on `positives`."""
    if positives == "pair":
        return []
    found: list[tuple[str | int, ...]] = [("key", key), ("caption", " ".join(caption.lower().split()))]
    if positives == "class":
        found.append(("key", key) if label is None else ("label", label))
    return found
