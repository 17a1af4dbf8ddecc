"""Attention where one query asks all tokens of a sequence: neither keys nor values are made of the tokens.

A score is q · (W_k x + b_k), which is (q W_k) · x + q · b_k; and the weights of a sequence sum to 1, so the mean of the values
W_v x + b_v is W_v times the mean of x, plus b_v. Both maps are thus applied once a sequence in place of once a token: of the
last block of a ViT-B/32, with 50 tokens a picture, what is left of their products is a fiftieth. But for the order of sums the
result is the same.

Shapes: S sequences, L tokens of one, W numbers of a token, H heads of D numbers, K = H D.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.models.linear import Linear

AttentionHook = Callable[[Tensor], object]


def single_query_attention(
    query: Float[Tensor, "S K"],
    sequences: Sequence[Float[Tensor, "_ _ W"]],
    key: nn.Module,
    value: nn.Module,
    *,
    heads: int,
    watcher: AttentionHook | None = None,
) -> Float[Tensor, "S K"]:
    """What each sequence's query hears, its heads side by side.

    Sequences of one length lie in one tensor (their number, L, W); `watcher` is told their weights (number, H, 1, L). Maps that
    are no plain `Linear`, an adapter or one in integers, are asked for keys and values.
    """
    queries = query.unflatten(1, (heads, -1))
    numbers = [len(tokens) for tokens in sequences]
    if not (type(key) is Linear and type(value) is Linear):
        parts = zip(sequences, queries.split(numbers), strict=True)
        return torch.cat([query[:0], *(_by_keys(tokens, asks, key, value, watcher) for tokens, asks in parts)])
    same_for_all = (queries * key.bias.unflatten(0, (heads, -1))).sum(dim=2, keepdim=True)
    folded = (queries.transpose(0, 1) @ key.weight.unflatten(0, (heads, -1))).transpose(0, 1)
    means = [folded[:0]]
    for tokens, asks, same in zip(sequences, folded.split(numbers), same_for_all.split(numbers), strict=True):
        weights = _weights(asks @ tokens.transpose(1, 2) + same, queries.shape[2], watcher)
        means.append(weights @ tokens)
    heard = torch.cat(means).transpose(0, 1) @ value.weight.unflatten(0, (heads, -1)).transpose(1, 2)
    return heard.transpose(0, 1).flatten(1) + value.bias


def _by_keys(
    tokens: Float[Tensor, "S L W"],
    asks: Float[Tensor, "S H D"],
    key: nn.Module,
    value: nn.Module,
    watcher: AttentionHook | None,
) -> Float[Tensor, "S K"]:
    keys, values = (side(tokens).unflatten(2, asks.shape[1:]) for side in (key, value))
    weights = _weights(torch.einsum("shd,slhd->shl", asks, keys), asks.shape[2], watcher)
    return torch.einsum("shl,slhd->shd", weights, values).flatten(1)


def _weights(scores: Float[Tensor, "S H L"], width: int, watcher: AttentionHook | None) -> Float[Tensor, "S H L"]:
    weights = (scores * width**-0.5).softmax(dim=2)[:, :, None]
    if watcher is not None:
        watcher(weights)  # And so what it is told is what the result was made of: a gradient flows through it.
    return weights[:, :, 0]
