"""One entry point for attention over packed sequences; which kernel computes it depends on the device.

The tokens of all sequences of a batch are concatenated in one tensor, without padding. `SequenceLayout` describes where each
sequence begins. The layout and the device determine the kernel:

=================================  ====================================================================
all sequences of one length        one call of `scaled_dot_product_attention`
several lengths, CPU               one call per length, so that nothing is computed for padding
several lengths, CUDA, fp16/bf16   `varlen_attn`: one call, no padding
several lengths, any other         one call on sequences padded to the longest
=================================  ====================================================================

On a GPU, one call per length is slow: cuDNN builds a new plan for each new pair (number of texts, length).

Shapes: N tokens of all sequences, S sequences, L tokens of the longest sequence, H heads, D head width.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn import functional

_MAX_VARLEN_WIDTH = 256
BUCKETED_DEVICES = frozenset({"cpu"})
"""Device types on which one call per length is fastest."""


class LengthBucket(NamedTuple):
    """Consecutive sequences of the same length."""

    num: int
    length: int


@dataclass(frozen=True)
class SequenceLayout:
    """How N tokens are split into S sequences, sorted by length in ascending order.

    >>> layout = SequenceLayout((LengthBucket(num=2, length=3), LengthBucket(num=1, length=5)))
    >>> layout.num_sequences, layout.num_tokens, layout.max_length
    (3, 11, 5)
    """

    buckets: tuple[LengthBucket, ...]
    cu_seq: Int32[Tensor, " ends"] | None = None
    """Cumulative sequence lengths: the start of each sequence, then N. None where attention uses the buckets."""
    slots: Int64[Tensor, " N"] | None = None
    """The position of each token in the flattened padded grid (S * L). None where attention uses the buckets."""
    limit: int | None = None
    """Maximum length over all batches. Kernels receive it instead of L, so that compiled code works for all batches."""

    @classmethod
    def of(
        cls, buckets: tuple[LengthBucket, ...], device: torch.device, *, limit: int | None = None
    ) -> "SequenceLayout":
        """The layout of `buckets`, with the indices that attention on `device` needs."""
        layout = cls(buckets)
        if layout.is_uniform or device.type in BUCKETED_DEVICES:
            return layout
        num, length = torch.tensor(buckets).unbind(dim=1)
        lengths = length.repeat_interleave(num)
        ends = lengths.cumsum(0)
        # Padding adds this many slots before each sequence.
        padding = torch.arange(len(lengths)) * layout.max_length - (ends - lengths)
        slots = torch.arange(layout.num_tokens) + padding.repeat_interleave(lengths)
        cu_seq = functional.pad(ends, (1, 0)).to(torch.int32)
        return cls(buckets, cu_seq.to(device, non_blocking=True), slots.to(device, non_blocking=True), limit)

    @property
    def is_uniform(self) -> bool:
        """Whether all sequences have the same length."""
        return len(self.buckets) <= 1

    @property
    def num_sequences(self) -> int:
        """S, the number of sequences."""
        return sum(bucket.num for bucket in self.buckets)

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens."""
        return sum(bucket.num * bucket.length for bucket in self.buckets)

    @property
    def max_length(self) -> int:
        """L, the length of the longest sequence; 0 if there is no sequence."""
        return self.buckets[-1].length if self.buckets else 0


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H D"],
    value: Float[Tensor, "N H D"],
    layout: SequenceLayout,
    *,
    is_causal: bool,
) -> Float[Tensor, "N H D"]:
    """Multi-head attention within each sequence: softmax(q · k / sqrt(D)) v (Vaswani et al. 2017, sec. 3.2).

    Args:
        query, key, value: one row per token; the sequences are in the order of `layout`.
        layout: how the tokens are split into sequences.
        is_causal: whether a token attends only to itself and earlier tokens of its sequence, instead of the whole sequence.

    >>> x = torch.randn(5, 1, 8)
    >>> out = attend(x, x, x, SequenceLayout((LengthBucket(1, 2), LengthBucket(1, 3))), is_causal=True)
    >>> torch.allclose(out[0], x[0]), torch.allclose(out[2], x[2])  # A first token attends only to itself.
    (True, True)
    """
    if layout.cu_seq is None:
        return _by_bucket(query, key, value, layout, is_causal=is_causal)
    if _has_varlen(query):
        longest = layout.limit or layout.max_length
        return _varlen(query, key, value, layout, cu_query=layout.cu_seq, max_query=longest, is_causal=is_causal)
    assert layout.slots is not None
    q, k, v = (_pad(side, layout).transpose(1, 2) for side in (query, key, value))  # S H L D
    # The causal mask already excludes the padding, which follows all tokens of a sequence.
    mask = None if is_causal else _is_token(layout)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    return out.transpose(1, 2).flatten(0, 1)[layout.slots]


def attend_once(
    query: Float[Tensor, "S H D"], key: Float[Tensor, "N H D"], value: Float[Tensor, "N H D"], layout: SequenceLayout
) -> Float[Tensor, "S H D"]:
    """Attention with one query per sequence, which attends to the whole sequence.

    Args:
        query: one row per sequence, in the order of `layout`.
        key, value: one row per token.
        layout: how the tokens are split into sequences.

    >>> x = torch.ones(5, 1, 8)
    >>> attend_once(x[:2], x, x, SequenceLayout((LengthBucket(1, 2), LengthBucket(1, 3)))).shape
    torch.Size([2, 1, 8])
    """
    if layout.cu_seq is None:
        keys, values = (split_buckets(side, layout) for side in (key, value))
        queries = query.split([bucket.num for bucket in layout.buckets])
        parts = [
            functional.scaled_dot_product_attention(q[:, :, None], k.transpose(1, 2), v.transpose(1, 2))[:, :, 0]
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
        return torch.cat([query[:0], *parts])
    if _has_varlen(query):
        one_each = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        return _varlen(query, key, value, layout, cu_query=one_each, max_query=1, is_causal=False)
    k, v = (_pad(side, layout).transpose(1, 2) for side in (key, value))  # S H L D
    out = functional.scaled_dot_product_attention(query[:, :, None], k, v, attn_mask=_is_token(layout))
    return out[:, :, 0]


def split_buckets(x: Tensor, layout: SequenceLayout) -> list[Tensor]:
    """Split tokens (N, ...) into one tensor (num, length, ...) per bucket."""
    buckets = layout.buckets
    parts = [x] if len(buckets) == 1 else x.split([bucket.num * bucket.length for bucket in buckets])
    return [part.unflatten(0, (bucket.num, bucket.length)) for part, bucket in zip(parts, buckets, strict=True)]


def _by_bucket(query: Tensor, key: Tensor, value: Tensor, layout: SequenceLayout, *, is_causal: bool) -> Tensor:
    parts = []
    for qkv in zip(*(split_buckets(side, layout) for side in (query, key, value)), strict=True):
        q, k, v = (side.transpose(1, 2) for side in qkv)  # num H length D
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat([query[:0], *parts])


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SequenceLayout,
    *,
    cu_query: Tensor,
    max_query: int,
    is_causal: bool,
) -> Tensor:
    kernel, causal = _varlen_kernel()
    return kernel(
        query,
        key,
        value,
        cu_query,
        layout.cu_seq,
        max_query,
        layout.limit or layout.max_length,
        **(causal if is_causal else {}),
    )


@cache
def _varlen_kernel() -> tuple[Callable[..., Any], dict[str, Any]]:
    """PyTorch's `varlen_attn` and its keyword arguments for causal attention, which were renamed after PyTorch 2.10."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  (takes 1.7 s to import, and only GPUs use it)

    is_renamed = "window_size" in inspect.signature(varlen_attn).parameters
    return varlen_attn, {"window_size": (-1, 0)} if is_renamed else {"is_causal": True}


def _has_varlen(query: Tensor) -> bool:
    """Whether `varlen_attn` supports this device, dtype and head width."""
    return (
        query.device.type == "cuda"
        and query.dtype in {torch.float16, torch.bfloat16}
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= _MAX_VARLEN_WIDTH
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _pad(x: Float[Tensor, "N H D"], layout: SequenceLayout) -> Float[Tensor, "S L H D"]:
    """Pad each sequence with zeros to the length of the longest one."""
    num, length = layout.num_sequences, layout.max_length
    assert layout.slots is not None
    return x.new_zeros(num * length, *x.shape[1:]).index_copy(0, layout.slots, x).unflatten(0, (num, length))


def _is_token(layout: SequenceLayout) -> Tensor:
    """A boolean mask (S, 1, 1, L) that is False at padding."""
    assert layout.cu_seq is not None
    position = torch.arange(layout.max_length, device=layout.cu_seq.device)
    return (position < layout.cu_seq.diff()[:, None])[:, None, None]
