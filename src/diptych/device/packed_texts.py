"""Texts of a batch concatenated without padding, as a text tower on a GPU receives them. Data workers build them.

Everything that kernels and compiled code need is a tensor or the shape of a tensor, so that code compiled for one batch also
works for batches with other lengths. The number of tokens is rounded up to a multiple of 64, so that few different sizes occur.
The added tokens are called the filling. They form sequences of their own after the texts, because attention would be undefined
for tokens outside of all sequences.

Shapes: U texts, T tokens of the longest text, N tokens with the filling, S sequences with the filling, L tokens of the longest
sequence, rounded up to a multiple of 16.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from diptych.core.errors import DataError
from diptych.device.tensors import with_tensors

TOKEN_MULTIPLE = 64
"""The number of packed tokens is a multiple of this."""
_WIDTH_MULTIPLE = 16
"""The width L of the padded grid is a multiple of this: compiled code is specialized for multiples of 16."""


@dataclass(frozen=True)
class PackedTexts:
    """Packed token ids and the indices that a text tower needs. The texts are sorted by length; the filling follows them."""

    ids: Int64[Tensor, " N"]
    """Token ids; 0 in the filling."""
    position: Int64[Tensor, " N"]
    """The position of each token in its sequence."""
    cu_seq: Int32[Tensor, " ends"]
    """Cumulative sequence lengths (S + 1): the start of each sequence, then N."""
    slots: Int64[Tensor, " N"]
    """The index of each token in the flattened padded grid (S * L)."""
    is_token: Bool[Tensor, "S L"]
    """False at the padding of the padded grid."""
    start_idx: Int64[Tensor, " S"]
    """The index of the first token of each sequence."""
    end_idx: Int64[Tensor, " S"]
    """The index of the last token of each sequence."""
    inverse_perm: Int64[Tensor, " U"]
    """The sequence of each text: `pooled[inverse_perm]` is in the order of the batch and omits the filling."""
    limit: int
    """Maximum length of a text over all batches, the context length."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "PackedTexts":
        """The same texts on `device`."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True, kw_only=True)
class PackingSpec:
    """How data workers pack the texts of each batch."""

    context_length: int
    """Maximum number of tokens of a text."""
    micro_batch: int | None = None
    """Number of pairs that are encoded at once; None if it is the whole batch."""

    def pack(
        self, ids: Int64[Tensor, "U T"], lengths: Int64[Tensor, " U"], *, num_pairs: int
    ) -> tuple[PackedTexts, ...]:
        """The packed texts of a batch, one item per part (`num_parts`, `torch.tensor_split`)."""
        num = num_parts(num_pairs, self.micro_batch)
        parts = zip(ids.tensor_split(num), lengths.tensor_split(num), strict=True)
        return tuple(pack_texts(*part, context_length=self.context_length) for part in parts)


def num_parts(num_pairs: int, micro_batch: int | None) -> int:
    """The number of parts in which a batch is encoded.

    >>> num_parts(64, None), num_parts(64, 16), num_parts(65, 16)
    (1, 4, 5)
    """
    return -(-num_pairs // (micro_batch or num_pairs))


def pack_texts(ids: Int64[Tensor, "U T"], lengths: Int64[Tensor, " U"], *, context_length: int) -> PackedTexts:
    """The texts of a padded batch, packed.

    The filling has 1 to 64 tokens, in sequences no longer than the longest text, so that it adds little to the padded grid.

    Args:
        ids: token ids on the CPU, one padded row per text.
        lengths: number of tokens of each text, on the CPU.
        context_length: maximum length of a text over all batches.

    Raises:
        DataError: a length is below 1, above T, or above `context_length`.

    >>> packed = pack_texts(torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 2]), context_length=77)
    >>> packed.ids[:6].tolist(), packed.cu_seq[:4].tolist(), len(packed.ids), packed.inverse_perm.tolist()
    ([8, 9, 5, 6, 7, 0], [0, 2, 5, 8], 64, [1, 0])
    """
    shortest, longest = (int(lengths.min()), int(lengths.max())) if len(lengths) else (1, 1)
    if shortest < 1 or (len(lengths) and longest > min(ids.shape[1], context_length)):
        raise DataError(
            f"texts of {shortest} to {longest} tokens do not fit in rows of {min(ids.shape[1], context_length)}"
        )
    order = torch.argsort(lengths, stable=True)
    sequence_lengths = torch.cat([lengths[order], _filling(int(lengths.sum()), longest)])
    ends = sequence_lengths.cumsum(0)
    starts = ends - sequence_lengths
    num_tokens = int(ends[-1])
    sequence = torch.arange(len(ends)).repeat_interleave(sequence_lengths)  # N
    position = torch.arange(num_tokens) - starts[sequence]
    width = -(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    # The mask selects in row-major order, which is the packed order.
    tokens = ids[order][torch.arange(ids.shape[1]) < lengths[order][:, None]]
    return PackedTexts(
        ids=torch.cat([tokens, tokens.new_zeros(num_tokens - len(tokens))]),
        position=position,
        cu_seq=torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
        slots=sequence * width + position,
        is_token=torch.arange(width) < sequence_lengths[:, None],
        start_idx=starts,
        end_idx=ends - 1,
        inverse_perm=torch.argsort(order),
        limit=context_length,
    )


def _filling(num_tokens: int, longest: int) -> Int64[Tensor, " _"]:
    """The lengths of the sequences that follow `num_tokens` tokens. There is at least one token, so at least one sequence."""
    missing = TOKEN_MULTIPLE - num_tokens % TOKEN_MULTIPLE
    lengths = torch.full((-(-missing // longest),), longest, dtype=torch.int64)
    lengths[-1] = missing - longest * (len(lengths) - 1)
    return lengths
