"""Packing of texts: their tokens are concatenated without padding, so that nothing is computed for padding.

Texts are sorted by length, because sequences of one length share an attention call on a CPU. After the last layer,
`inverse_perm` restores the order of the batch. For a GPU, data workers pack the texts (`PackedTexts`).

Shapes: B texts, N tokens of all texts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from diptych.core.deprecation import RenamedAttribute
from diptych.core.errors import DataError
from diptych.device.packed_texts import PackedTexts, PackingSpec, num_parts, pack_texts
from diptych.models import attention
from diptych.models.attention import LengthBucket, SequenceLayout
from diptych.models.config import TextConfig, TextTowerConfig

__all__ = [
    "PackedTexts",
    "Packing",
    "PackingSpec",
    "layout_of",
    "num_parts",
    "pack",
    "pack_padded",
    "pack_texts",
    "pack_uniform",
    "packing_spec",
]


@dataclass(frozen=True)
class Packing:
    """How the tokens of a batch of texts are packed."""

    layout: SequenceLayout
    """The packed texts, sorted by length in ascending order."""
    gather_idx: Int64[Tensor, " N"]
    """The index of each packed token in the flattened input batch."""
    position: Int64[Tensor, " N"]
    """The position of each packed token within its text."""
    start_idx: Int64[Tensor, " B"]
    """The index among the packed tokens of each text's start token, in packed order."""
    end_idx: Int64[Tensor, " B"]
    """The index among the packed tokens of each text's end token, in packed order."""
    inverse_perm: Int64[Tensor, " B"]
    """The packed index of each text of the batch: `packed[inverse_perm]` is in batch order."""

    place = RenamedAttribute("gather_idx")
    first = RenamedAttribute("start_idx")
    last = RenamedAttribute("end_idx")
    rank = RenamedAttribute("inverse_perm")


def pack(
    lengths: Int64[Tensor, " B"], *, padded_to: int | None, device: torch.device, limit: int | None = None
) -> Packing:
    """The packing of texts with the given lengths.

    Args:
        lengths: number of tokens of each text. They are read on the CPU and should already be there.
        padded_to: row length of a padded batch, or None if the texts are already concatenated without padding.
        device: the device of the tokens.
        limit: maximum length over all batches (`SequenceLayout.limit`).

    Raises:
        DataError: a length is below 1, or above `padded_to`.

    >>> packing = pack(torch.tensor([3, 2]), padded_to=4, device=torch.device("cpu"))
    >>> packing.layout.buckets, packing.gather_idx.tolist()
    ((LengthBucket(num=1, length=2), LengthBucket(num=1, length=3)), [4, 5, 0, 1, 2])
    """
    lengths = lengths.cpu()
    if len(lengths) and (int(lengths.min()) < 1 or int(lengths.max()) > (padded_to or int(lengths.max()))):
        raise DataError(f"texts of {lengths.min()} to {lengths.max()} tokens do not fit in rows of {padded_to}")
    order = torch.argsort(lengths, stable=True)
    packed = lengths[order]
    offset = torch.arange(len(lengths)) * padded_to if padded_to is not None else lengths.cumsum(0) - lengths
    end_idx = packed.cumsum(0) - 1
    start_idx = end_idx - packed + 1
    position = torch.arange(int(packed.sum())) - start_idx.repeat_interleave(packed)
    gather_idx = offset[order].repeat_interleave(packed) + position
    inverse_perm = torch.argsort(order)
    values, counts = torch.unique_consecutive(packed, return_counts=True)
    buckets = tuple(LengthBucket(num, length) for num, length in zip(counts.tolist(), values.tolist(), strict=True))
    return Packing(
        layout=SequenceLayout.of(buckets, device, limit=limit),
        gather_idx=gather_idx.to(device, non_blocking=True),
        position=position.to(device, non_blocking=True),
        start_idx=start_idx.to(device, non_blocking=True),
        end_idx=end_idx.to(device, non_blocking=True),
        inverse_perm=inverse_perm.to(device, non_blocking=True),
    )


def pack_uniform(num: int, length: int, device: torch.device) -> Packing:
    """The packing of `num` padded texts that all have `length` tokens. Nothing is copied from the host.

    >>> packing = pack_uniform(2, 3, torch.device("cpu"))
    >>> packing.position.tolist(), packing.start_idx.tolist(), packing.end_idx.tolist()
    ([0, 1, 2, 0, 1, 2], [0, 3], [2, 5])
    """
    gather_idx = torch.arange(num * length, device=device)
    rows = torch.arange(num, device=device)
    return Packing(
        layout=SequenceLayout((LengthBucket(num, length),)),
        gather_idx=gather_idx,
        position=gather_idx % length,
        start_idx=rows * length,
        end_idx=rows * length + (length - 1),
        inverse_perm=rows,
    )


def pack_padded(is_token: Bool[Tensor, "B T"]) -> Packing:
    """Return a packing that keeps the padding of the rows. No value is read on the host, so it can be exported to a graph.

    >>> packing = pack_padded(torch.tensor([[True, True, False], [True, True, True]]))
    >>> packing.position.tolist(), packing.start_idx.tolist(), packing.end_idx.tolist()
    ([0, 1, 2, 0, 1, 2], [0, 3], [1, 5])
    """
    num, length = is_token.shape
    rows = torch.arange(num, device=is_token.device)
    start_idx = rows * length
    return Packing(
        layout=SequenceLayout.padded(is_token),
        gather_idx=torch.arange(num * length, device=is_token.device),
        position=torch.arange(length, device=is_token.device).repeat(num),
        start_idx=start_idx,
        end_idx=start_idx + is_token.sum(dim=1) - 1,
        inverse_perm=rows,
    )


def layout_of(packing: Packing | PackedTexts) -> SequenceLayout:
    """How the packed tokens are split into sequences."""
    if isinstance(packing, Packing):
        return packing.layout
    return SequenceLayout(
        (), cu_seq=packing.cu_seq, slots=packing.slots, is_token=packing.is_token, limit=packing.limit
    )


def packing_spec(config: TextTowerConfig, device: torch.device, *, micro_batch: int | None) -> PackingSpec | None:
    """How texts should be packed for a text tower on `device`; None if the tower packs them by itself.

    The result is None on a CPU, where the tower shares prefixes; in SigLIP's layout, where all texts have the context length;
    for a tower with an appended token; and for transformers encoders, which need padded texts and a mask.

    Args:
        config: config of the tower.
        device: device of the tower.
        micro_batch: number of pairs that are encoded at once; None if it is the whole batch.

    >>> packing_spec(TextConfig(), torch.device("cpu"), micro_batch=None) is None
    True
    """
    packs_itself = not isinstance(config, TextConfig) or config.layout == "siglip" or config.pooling == "appended"
    if device.type in attention.BUCKETED_DEVICES or packs_itself:
        return None
    return PackingSpec(context_length=config.context_length, micro_batch=micro_batch)
