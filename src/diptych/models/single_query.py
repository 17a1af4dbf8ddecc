"""Attention with one query per sequence, computed without projecting every token to a key and a value.

The score q · (W_k x + b_k) equals (q W_k) · x + q · b_k. The attention weights of a sequence sum to 1, so the weighted mean of
the values W_v x + b_v equals W_v times the weighted mean of x, plus b_v. Both projections are therefore applied once per
sequence instead of once per token. In the last block of a ViT-B/32, with 50 tokens per image, this leaves one fiftieth of
their multiplications. The result differs only in summation order.

Shapes: S sequences, L tokens of a sequence, W token width, H heads, D head width, K = H * D.
"""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

AttentionHook = Callable[[Tensor], object]
"""Called with the attention weights (sequences, heads, queries, keys) of each bucket."""


def single_query_attention(
    query: Float[Tensor, "S K"],
    sequences: Sequence[Float[Tensor, "_ _ W"]],
    key: nn.Module,
    value: nn.Module,
    *,
    heads: int,
    hook: AttentionHook | None = None,
) -> Float[Tensor, "S K"]:
    """Attention output of each sequence's query, with the heads concatenated.

    Args:
        query: one projected query per sequence.
        sequences: one tensor (num, L, W) for each group of sequences of the same length; their numbers add up to S.
        key: projects tokens to keys. If `key` or `value` is not an `nn.Linear` (for example an adapter or an int8 layer),
            all keys and values are computed.
        value: projects tokens to values.
        heads: number of heads.
        hook: called with the attention weights (num, H, 1, L) of each tensor of `sequences`.
    """
    queries = query.unflatten(1, (heads, -1))
    counts = [tokens.shape[0] for tokens in sequences]
    if not (_is_plain(key) and _is_plain(value)):
        parts = zip(sequences, queries.split(counts), strict=True)
        return torch.cat([query[:0], *(_project_all_tokens(tokens, q, key, value, hook) for tokens, q in parts)])
    bias_score = (queries * key.bias.unflatten(0, (heads, -1))).sum(dim=2, keepdim=True)  # S H 1: q · b_k
    folded = (queries.transpose(0, 1) @ key.weight.unflatten(0, (heads, -1))).transpose(0, 1)  # S H W: q W_k
    means = [folded[:0]]
    for tokens, q, bias in zip(sequences, folded.split(counts), bias_score.split(counts), strict=True):
        weights = _attention_weights(q @ tokens.transpose(1, 2) + bias, queries.shape[2], hook)  # num H L
        means.append(weights @ tokens)  # num H W
    out = torch.cat(means).transpose(0, 1) @ value.weight.unflatten(0, (heads, -1)).transpose(1, 2)  # H S D
    return out.transpose(0, 1).flatten(1) + value.bias


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is an `nn.Linear` or declares that it computes the same. Other subclasses may be adapters."""
    return type(layer) is nn.Linear or "IS_PLAIN_LINEAR" in vars(type(layer))


def _project_all_tokens(
    tokens: Float[Tensor, "S L W"],
    query: Float[Tensor, "S H D"],
    key: nn.Module,
    value: nn.Module,
    hook: AttentionHook | None,
) -> Float[Tensor, "S K"]:
    keys, values = (side(tokens).unflatten(2, query.shape[1:]) for side in (key, value))  # S L H D
    weights = _attention_weights(torch.einsum("shd,slhd->shl", query, keys), query.shape[2], hook)
    return torch.einsum("shl,slhd->shd", weights, values).flatten(1)


def _attention_weights(
    scores: Float[Tensor, "S H L"], head_width: int, hook: AttentionHook | None
) -> Float[Tensor, "S H L"]:
    weights = (scores * head_width**-0.5).softmax(dim=2)[:, :, None]  # S H 1 L
    if hook is not None:
        hook(weights)  # The result is computed from this tensor, so gradients with respect to it are defined.
    return weights[:, :, 0]
