"""The one entry point for attention; which kernel computes it depends on the device.

The tokens of all sequences of a batch are concatenated in one tensor, without padding. `SequenceLayout` describes where each
sequence begins. The layout and the device determine the kernel:

=================================  ====================================================================
all sequences of one length        one call of `scaled_dot_product_attention`
several lengths, CPU               one call per length, so that nothing is computed for padding
several lengths, CUDA, fp16/bf16   `varlen_attn`: one call, no padding
several lengths, any other         one call on sequences padded to the longest
a padded grid (`padded`)           one call on the grid as it is
=================================  ====================================================================

On a GPU, one call per length is slow: cuDNN builds a new plan for each new pair (number of texts, length).

`attend` is attention of all tokens, `attend_pooled` has one query per sequence, and `attend_paths` serves prefix trees.

Shapes: N tokens of all sequences, S sequences, L tokens of the longest sequence, H heads, D head width, W token width,
K = H * D, A query tokens.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn
from torch.nn import functional

from diptych.models.single_query import AttentionHook, single_query_attention

_MAX_VARLEN_WIDTH = 256
BUCKETED_DEVICES = frozenset({"cpu"})
"""Device types on which one call per length is fastest."""
AncestorIds: TypeAlias = tuple[Int64[Tensor, "_ _"], ...]
"""One tensor (queries, length) per path length: for each query token the tokens that it attends to, itself last."""


class LengthBucket(NamedTuple):
    """Consecutive sequences of the same length."""

    num: int
    length: int


@dataclass(frozen=True)
class SequenceLayout:
    """How N tokens are split into S sequences: by buckets, or by tensors.

    Code that is compiled once for all batches uses the tensors, because Python numbers would become constants of that code.

    >>> layout = SequenceLayout((LengthBucket(num=2, length=3), LengthBucket(num=1, length=5)))
    >>> layout.num_sequences, layout.num_tokens, layout.max_length
    (3, 11, 5)
    """

    buckets: tuple[LengthBucket, ...]
    """Sequences in the order of their tokens, sorted by length; empty if only the tensors describe them."""
    cu_seq: Int32[Tensor, " ends"] | None = None
    """Cumulative sequence lengths: the start of each sequence, then N. None where attention uses the buckets."""
    slots: Int64[Tensor, " N"] | None = None
    """The position of each token in the flattened padded grid (S * L). None where attention uses the buckets."""
    is_token: Bool[Tensor, "S L"] | None = None
    """False at the padding of the padded grid. None where attention uses the buckets. If `slots` is None, the tokens include
    the padding."""
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
        is_token = torch.arange(layout.max_length) < lengths[:, None]
        cu_seq, slots, is_token = (side.to(device, non_blocking=True) for side in (cu_seq, slots, is_token))
        return cls(buckets, cu_seq=cu_seq, slots=slots, is_token=is_token, limit=limit)

    @classmethod
    def padded(cls, is_token: Bool[Tensor, "S L"]) -> "SequenceLayout":
        """Return the layout of S sequences that are padded to L tokens (N = S * L). Padding follows the tokens of a sequence.

        No value is read on the host, so an exported graph works for any number and length of sequences.
        """
        return cls((), is_token=is_token)

    @property
    def is_uniform(self) -> bool:
        """Whether all sequences have the same length."""
        return self.is_token is None and len(self.buckets) <= 1

    @property
    def num_sequences(self) -> int:
        """S, the number of sequences."""
        return sum(bucket.num for bucket in self.buckets) if self.is_token is None else self.is_token.shape[0]

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens."""
        if self.slots is not None:
            return len(self.slots)
        return self.num_sequences * self.max_length if self.is_token is not None else self._num_in_buckets

    @property
    def _num_in_buckets(self) -> int:
        return sum(bucket.num * bucket.length for bucket in self.buckets)

    @property
    def max_length(self) -> int:
        """L, the length of the longest sequence; 0 if there is no sequence."""
        if self.is_token is not None:
            return self.is_token.shape[1]
        return self.buckets[-1].length if self.buckets else 0


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H D"],
    value: Float[Tensor, "N H D"],
    layout: SequenceLayout,
    *,
    is_causal: bool,
    hook: AttentionHook | None = None,
) -> Float[Tensor, "N H D"]:
    """Multi-head attention within each sequence: softmax(q · k / sqrt(D)) v (Vaswani et al. 2017, sec. 3.2).

    Args:
        query, key, value: one row per token; the sequences are in the order of `layout`.
        layout: how the tokens are split into sequences.
        is_causal: whether a token attends only to itself and earlier tokens of its sequence, instead of the whole sequence.
        hook: called with the attention weights (sequences, H, queries, keys) of each call. Causal attention does not call it.

    >>> x = torch.randn(5, 1, 8)
    >>> out = attend(x, x, x, SequenceLayout((LengthBucket(1, 2), LengthBucket(1, 3))), is_causal=True)
    >>> torch.allclose(out[0], x[0]), torch.allclose(out[2], x[2])  # A first token attends only to itself.
    (True, True)
    """
    kernel = functional.scaled_dot_product_attention if hook is None or is_causal else partial(_with_weights, hook=hook)
    if layout.is_token is None:
        return _by_bucket(query, key, value, layout, is_causal=is_causal, kernel=kernel)
    if hook is None and _has_varlen(query, layout):
        return _varlen(query, key, value, layout, is_causal=is_causal)
    q, k, v = (pad_sequences(side, layout).transpose(1, 2) for side in (query, key, value))  # S H L D
    # The causal mask already excludes the padding, which follows all tokens of a sequence.
    options: dict[str, Any] = {"is_causal": True} if is_causal else {"attn_mask": _key_mask(layout)}
    return _unpad(kernel(q, k, v, **options).transpose(1, 2), layout)


def attend_once(
    query: Float[Tensor, "S H D"],
    key: Float[Tensor, "N H D"],
    value: Float[Tensor, "N H D"],
    layout: SequenceLayout,
    *,
    hook: AttentionHook | None = None,
) -> Float[Tensor, "S H D"]:
    """Attention with one query per sequence, which attends to the whole sequence.

    Args:
        query: one row per sequence, in the order of `layout`.
        key, value: one row per token.
        layout: how the tokens are split into sequences.
        hook: called with the attention weights (sequences, H, 1, keys) of each call.

    >>> x = torch.ones(5, 1, 8)
    >>> attend_once(x[:2], x, x, SequenceLayout((LengthBucket(1, 2), LengthBucket(1, 3)))).shape
    torch.Size([2, 1, 8])
    """
    kernel = functional.scaled_dot_product_attention if hook is None else partial(_with_weights, hook=hook)
    if layout.is_token is None:
        keys, values = (split_buckets(side, layout) for side in (key, value))
        queries = query.split([bucket.num for bucket in layout.buckets])
        parts = [
            kernel(q[:, :, None], k.transpose(1, 2), v.transpose(1, 2))[:, :, 0]
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
        return torch.cat([query[:0], *parts])
    if hook is None and _has_varlen(query, layout):
        one_each = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        return _varlen(query, key, value, layout, one_each=one_each, is_causal=False)
    k, v = (pad_sequences(side, layout).transpose(1, 2) for side in (key, value))  # S H L D
    out: Tensor = kernel(query[:, :, None], k, v, attn_mask=_key_mask(layout))
    return out[:, :, 0]


def attend_pooled(
    query: Float[Tensor, "S K"],
    x: Float[Tensor, "N W"],
    layout: SequenceLayout,
    *,
    key: nn.Module,
    value: nn.Module,
    heads: int,
    hook: AttentionHook | None = None,
) -> Float[Tensor, "S K"]:
    """Attention with one query per sequence over tokens that are not yet projected, with the heads concatenated.

    Sequences of one length, and all sequences on a CPU, need no key and no value per token (`single_query.py`).

    Args:
        query: one projected query per sequence, in the order of `layout`.
        x: one row per token.
        layout: how the tokens are split into sequences.
        key, value: project tokens to keys and values.
        heads: number of heads.
        hook: called with the attention weights (sequences, H, 1, keys) of each call.
    """
    if layout.is_token is None:
        return single_query_attention(query, split_buckets(x, layout), key, value, heads=heads, hook=hook)
    q, k, v = (side.unflatten(1, (heads, -1)) for side in (query, key(x), value(x)))
    return attend_once(q, k, v, layout, hook=hook).flatten(1)


def attend_paths(
    query: Float[Tensor, "A H D"], key: Float[Tensor, "N H D"], value: Float[Tensor, "N H D"], paths: AncestorIds
) -> Float[Tensor, "A H D"]:
    """Attention in which each query token attends to the tokens of its path; see `prefix_tree.py`.

    >>> x = torch.randn(2, 1, 8)
    >>> out = attend_paths(x, x, x, (torch.tensor([[0]]), torch.tensor([[0, 1]])))
    >>> torch.allclose(out, attend(x, x, x, SequenceLayout((LengthBucket(1, 2),)), is_causal=True), atol=1e-6)
    True
    """
    outputs = []
    for part, path in zip(query.split([len(path) for path in paths]), paths, strict=True):
        keys, values = (
            side[path.flatten()].unflatten(0, path.shape).transpose(1, 2) for side in (key, value)
        )  # queries H length D
        outputs.append(functional.scaled_dot_product_attention(part[:, :, None], keys, values)[:, :, 0])
    return torch.cat(outputs)


def mean_of_each(x: Float[Tensor, "N W"], layout: SequenceLayout) -> Float[Tensor, "S W"]:
    """The mean over the tokens of each sequence. It is deterministic on every device."""
    if layout.is_token is None:
        return torch.cat([x[:0], *(tokens.mean(dim=1) for tokens in split_buckets(x, layout))])
    grid = pad_sequences(x, layout)
    if layout.slots is None:
        grid = grid.masked_fill(~layout.is_token[:, :, None], 0)
    return grid.sum(dim=1) / layout.is_token.sum(dim=1, keepdim=True)


def pad_sequences(x: Float[Tensor, "N *sizes"], layout: SequenceLayout) -> Float[Tensor, "S L *sizes"]:
    """The tokens of a layout with `is_token` as a grid. With `slots`, the padding is zero; otherwise it is that of `x`."""
    if layout.slots is None:
        assert layout.is_token is not None
        return x.unflatten(0, layout.is_token.shape)
    grid = (layout.num_sequences, layout.max_length)
    return x.new_zeros(grid[0] * grid[1], *x.shape[1:]).index_copy(0, layout.slots, x).unflatten(0, grid)


def split_buckets(x: Tensor, layout: SequenceLayout) -> list[Tensor]:
    """Split tokens (N, ...) into one tensor (num, length, ...) per bucket."""
    buckets = layout.buckets
    if len(buckets) == 1:
        return [x.unflatten(0, (-1, buckets[0].length))]  # -1: `num` differs between batches.
    parts = x.split([bucket.num * bucket.length for bucket in buckets])
    return [part.unflatten(0, (bucket.num, bucket.length)) for part, bucket in zip(parts, buckets, strict=True)]


def load_varlen(device: torch.device) -> None:
    """Load the kernel for sequences of several lengths, if there is one for `device`. Call it before code is compiled.

    Otherwise the first call of `attend` on a device loads it, and the compiler would trace the import.
    """
    if device.type != "cuda" or (device.index or 0) in _VARLEN:
        return
    _VARLEN[device.index or 0] = (
        _import_varlen() if torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY else None
    )


def _by_bucket(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SequenceLayout,
    *,
    is_causal: bool,
    kernel: Callable[..., Tensor],
) -> Tensor:
    parts = []
    for qkv in zip(*(split_buckets(side, layout) for side in (query, key, value)), strict=True):
        q, k, v = (side.transpose(1, 2) for side in qkv)  # num H length D
        parts.append(kernel(q, k, v, is_causal=is_causal).transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat([query[:0], *parts])


def _with_weights(
    query: Float[Tensor, "S H A D"],
    key: Float[Tensor, "S H L D"],
    value: Float[Tensor, "S H L D"],
    *,
    hook: AttentionHook,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "S H A D"]:
    """Attention that computes its weights explicitly and passes them to `hook`."""
    assert not is_causal
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    weights = (scores if attn_mask is None else scores.masked_fill(~attn_mask, -torch.inf)).softmax(dim=3)
    hook(weights)
    return weights @ value


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SequenceLayout,
    *,
    is_causal: bool,
    one_each: Tensor | None = None,
) -> Tensor:
    """Attention by `varlen_attn`. `one_each` is given if there is one query per sequence: 0, 1, ..., S."""
    kernel, longest = _varlen_kernel(query), layout.limit or layout.max_length
    assert kernel is not None
    cu_query, max_query = (layout.cu_seq, longest) if one_each is None else (one_each, 1)
    out: Tensor = kernel(query, key, value, cu_query, layout.cu_seq, max_query, longest, is_causal=is_causal)
    return out


_VARLEN: dict[int, Callable[..., Any] | None] = {}
"""For each CUDA device the kernel for sequences of several lengths; None if the device does not support it."""
_MIN_CAPABILITY = (8, 0)


def _has_varlen(query: Tensor, layout: SequenceLayout) -> bool:
    return layout.cu_seq is not None and _varlen_kernel(query) is not None


def _varlen_kernel(query: Tensor) -> Callable[..., Any] | None:
    """The kernel for sequences of several lengths, if it supports this device, dtype and head width."""
    if query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    if query.shape[-1] % 8 or query.shape[-1] > _MAX_VARLEN_WIDTH:
        return None
    load_varlen(query.device)
    return _VARLEN[query.device.index or 0]


def _import_varlen() -> Callable[..., Any]:
    """PyTorch's `varlen_attn`, with the argument `is_causal`, whose form depends on the version of PyTorch."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  (takes 1.7 s to import, and only GPUs use it)

    if "window_size" not in inspect.signature(varlen_attn).parameters:
        return varlen_attn

    def windowed(*inputs: Any, is_causal: bool) -> Any:
        return varlen_attn(*inputs, window_size=(-1, 0 if is_causal else -1))

    return windowed


def _unpad(x: Float[Tensor, "S L H D"], layout: SequenceLayout) -> Float[Tensor, "N H D"]:
    tokens = x.flatten(0, 1)
    return tokens if layout.slots is None else tokens.index_select(0, layout.slots)


def _key_mask(layout: SequenceLayout) -> Bool[Tensor, "S 1 1 L"]:
    """A mask that is False at padding."""
    assert layout.is_token is not None
    return layout.is_token[:, None, None]
