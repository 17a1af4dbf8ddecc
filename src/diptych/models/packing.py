"""Texts side by side without padding, so that no product is ever computed for it.

Sequences of different length would each need a call of their own; those of equal length share one. So the texts are packed
by length, the shortest first, and their embeddings put back into the batch's order at the end.

Shapes: B texts, T tokens of the longest, N tokens of all texts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from diptych.core.errors import DataError
from diptych.models.attention import LengthBucket, SequenceLayout


@dataclass(frozen=True)
class Packing:
    """How the tokens of a batch of texts are packed."""

    layout: SequenceLayout
    """Texts of equal length side by side, the shortest first."""
    place: Int64[Tensor, " N"]
    """Of each packed token: its place in the batch as it was given."""
    position: Int64[Tensor, " N"]
    """Of each packed token: its position within its text."""
    first: Int64[Tensor, " B"]
    """Packed places of the start marks, in packed order."""
    last: Int64[Tensor, " B"]
    """Packed places of the end marks, in packed order."""
    rank: Int64[Tensor, " B"]
    """Of each text of the batch: which it is in packed order."""


def pack(
    lengths: Int64[Tensor, " B"], *, padded_to: int | None, device: torch.device, limit: int | None = None
) -> Packing:
    """The packing of texts of these lengths.

    Args:
        lengths: tokens of each text, best kept on the CPU: the buckets must be known there.
        padded_to: tokens a row of the batch, or None if its texts already lie one after another.
        device: where the tokens are.
        limit: a length that no text of any batch exceeds.

    Raises:
        DataError: a length is below 1, or beyond its row.

    >>> packing = pack(torch.tensor([3, 2]), padded_to=4, device=torch.device("cpu"))
    >>> packing.layout.buckets, packing.place.tolist()
    ((LengthBucket(num=1, length=2), LengthBucket(num=1, length=3)), [4, 5, 0, 1, 2])
    """
    lengths = lengths.cpu()
    if len(lengths) and (int(lengths.min()) < 1 or int(lengths.max()) > (padded_to or int(lengths.max()))):
        raise DataError(f"texts of {lengths.min()} to {lengths.max()} tokens do not lie in rows of {padded_to}")
    order = torch.argsort(lengths, stable=True)
    packed = lengths[order]
    begin = torch.arange(len(lengths)) * padded_to if padded_to is not None else lengths.cumsum(0) - lengths
    last = packed.cumsum(0) - 1
    first = last - packed + 1
    position = torch.arange(int(packed.sum())) - first.repeat_interleave(packed)
    place = begin[order].repeat_interleave(packed) + position
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    values, counts = torch.unique_consecutive(packed, return_counts=True)
    buckets = tuple(LengthBucket(num, length) for num, length in zip(counts.tolist(), values.tolist(), strict=True))
    return Packing(
        layout=SequenceLayout.of(buckets, device, limit=limit),
        place=place.to(device),
        position=position.to(device),
        first=first.to(device),
        last=last.to(device),
        rank=rank.to(device),
    )
