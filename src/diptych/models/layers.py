"""The pre-norm transformer that both towers stand on (Radford et al. 2021, sec. 2.4; GPT-2's layout).

All sequences of a batch lie one after another in one tensor of tokens, without padding; a `SequenceLayout` says where each
begins. Images have one length; texts have several, the shortest first (see `packing.py`).

Shapes: N tokens of all sequences, S sequences, W width.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diptych.models.attention import SequenceLayout, attend, attend_once, split_buckets
from diptych.models.config import Activation
from diptych.models.linear import Linear
from diptych.models.single_query import AttentionHook, single_query_attention

AncestorIds: TypeAlias = tuple[Int64[Tensor, "_ _"], ...]
"""By length: for each token that asks, the tokens that it asks, itself the last."""


class LayerNorm(nn.LayerNorm):
    """Computes in its own precision and gives back the input's: its weights stay fp32 in a half-precision model."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The same shape."""
        normed = functional.layer_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The same shape."""
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
}


def hidden_width(width: int, ratio: float) -> int:
    """Of an MLP. Rounding must not make 2047 of 768 * (2048 / 768)."""
    return int(width * ratio + 1e-6)


class MLP(nn.Sequential):
    """Two linear maps around the non-linearity."""

    def __init__(self, width: int, *, ratio: float, activation: Activation) -> None:
        hidden = hidden_width(width, ratio)
        super().__init__(Linear(width, hidden), _ACTIVATIONS[activation](), Linear(hidden, width))

    def forward(self, x: Float[Tensor, "*N W"]) -> Float[Tensor, "*N W"]:
        """The same shape."""
        first, activation, second = self
        out: Tensor = (
            second(first(x), gelu=activation.approximate)
            if isinstance(activation, nn.GELU) and isinstance(second, Linear)
            else second(activation(first(x)))
        )
        return out


class Attention(nn.Module):
    """Multi-head attention within each sequence. Query, key and value are linear maps of their own, as adapters need them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.watcher: AttentionHook | None = None
        """Told the weights by which tokens are mixed (sequences, heads, asking, asked), where somebody wants to see them."""
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Float[Tensor, "N W"], layout: SequenceLayout, *, is_causal: bool) -> Float[Tensor, "N W"]:
        """Each token attends to its sequence or, if causal, to itself and the tokens before it."""
        query, key, value = (self._heads(side(x)) for side in (self.query, self.key, self.value))
        if self.watcher is None or is_causal:
            attended = attend(query, key, value, layout, is_causal=is_causal)
        else:
            attended = self._watched(query, key, value, layout)
        merged: Tensor = self.out(attended.flatten(1))
        return merged

    def pooled(
        self, asking: Float[Tensor, "S W"], x: Float[Tensor, "N W"], layout: SequenceLayout
    ) -> Float[Tensor, "S W"]:
        """Attention with one query per sequence, which attends to all its tokens; see `single_query.py`."""
        query = self.query(asking)
        if layout.cu_seq is None or self.watcher is not None:
            tokens = split_buckets(x, layout)
            attended = single_query_attention(
                query, tokens, self.key, self.value, heads=self.heads, watcher=self.watcher
            )
        else:
            key, value = self._heads(self.key(x)), self._heads(self.value(x))
            attended = attend_once(self._heads(query), key, value, layout).flatten(1)
        merged: Tensor = self.out(attended)
        return merged

    def along_paths(
        self, asking: Float[Tensor, "A W"], x: Float[Tensor, "N W"], paths: AncestorIds
    ) -> Float[Tensor, "A W"]:
        """Each query asks the tokens of its path; see `prefix_tree.py`."""
        query, key, value = self.query(asking), self.key(x), self.value(x)
        heard = []
        for part, path in zip(query.split([len(path) for path in paths]), paths, strict=True):
            keys, values = (
                side[path.flatten()].view(*path.shape, self.heads, self.head_width).transpose(1, 2)
                for side in (key, value)
            )
            asks = part.view(len(path), self.heads, 1, self.head_width)
            heard.append(functional.scaled_dot_product_attention(asks, keys, values).flatten(1))
        merged: Tensor = self.out(torch.cat(heard))
        return merged

    def _watched(self, query: Tensor, key: Tensor, value: Tensor, layout: SequenceLayout) -> Tensor:
        """Attention written out, so that `watcher` sees its weights."""
        assert self.watcher is not None
        out = []
        for qkv in zip(*(split_buckets(side, layout) for side in (query, key, value)), strict=True):
            q, k, v = (side.transpose(1, 2) for side in qkv)
            weights = (q @ k.transpose(2, 3) * self.head_width**-0.5).softmax(dim=3)
            self.watcher(weights)
            out.append((weights @ v).transpose(1, 2).flatten(0, 1))
        return torch.cat([query[:0], *out])

    def _heads(self, x: Float[Tensor, "A W"]) -> Float[Tensor, "A H D"]:
        return x.unflatten(1, (self.heads, self.head_width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); in training each addend with dropout."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        activation: Activation,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_1 = LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads)
        self.norm_2 = LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width, ratio=mlp_ratio, activation=activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "N W"], layout: SequenceLayout, *, is_causal: bool) -> Float[Tensor, "N W"]:
        """The next layer's tokens."""
        return self._add_and_mlp(x, self.attention(self.norm_1(x), layout, is_causal=is_causal))

    def pooled(
        self, x: Float[Tensor, "N W"], layout: SequenceLayout, chosen: Int64[Tensor, " S"]
    ) -> Float[Tensor, "S W"]:
        """The next layer's token at one place a sequence, exactly as `forward` gives it, and nothing for the others.

        After the last block only the pooled token is read, so nothing else needs its query, projection or MLP. In a causal
        tower the place must be the sequence's last, which sees everything.
        """
        normed = self.norm_1(x)
        return self._add_and_mlp(x[chosen], self.attention.pooled(normed[chosen], normed, layout))

    def along_paths(
        self, x: Float[Tensor, "N W"], nodes: Int64[Tensor, " A"], paths: AncestorIds
    ) -> Float[Tensor, "A W"]:
        """The next layer's token of some nodes, each of which sees the tokens of its path."""
        normed, is_all = self.norm_1(x), len(nodes) == len(x)
        tokens = x if is_all else x[nodes]
        return self._add_and_mlp(tokens, self.attention.along_paths(normed if is_all else normed[nodes], normed, paths))

    def _add_and_mlp(self, x: Float[Tensor, "A W"], heard: Float[Tensor, "A W"]) -> Float[Tensor, "A W"]:
        """Tokens with what they heard, and what the MLP makes of it."""
        x = x + self.dropout(heard)
        out: Tensor = x + self.dropout(self.mlp(self.norm_2(x)))
        return out


class Transformer(nn.Module):
    """A stack of blocks. Initialised as OpenAI's text tower (deviations fall with width and depth)."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        mlp_ratio: float,
        activation: Activation,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, activation=activation, norm_eps=norm_eps, dropout=dropout)
            for _ in range(layers)
        )
        for block in self.blocks:
            assert isinstance(block, Block)
            init_attention(block.attention, std=width**-0.5, out_std=(width * 2 * layers) ** -0.5)
            init_mlp(block.mlp, std=(2 * width) ** -0.5, out_std=(width * 2 * layers) ** -0.5)

    def forward(self, x: Float[Tensor, "N W"], layout: SequenceLayout, *, is_causal: bool) -> Float[Tensor, "N W"]:
        """All tokens after the last block."""
        return self._run_blocks(self.blocks, x, layout, is_causal=is_causal)

    def pooled(
        self, x: Float[Tensor, "N W"], layout: SequenceLayout, chosen: Int64[Tensor, " S"], *, is_causal: bool
    ) -> Float[Tensor, "S W"]:
        """The token at one place a sequence after the last block; see `Block.pooled`."""
        *body, last = self.blocks
        x = self._run_blocks(body, x, layout, is_causal=is_causal)
        assert isinstance(last, Block)
        return last.pooled(x, layout, chosen)

    def _run_blocks(self, blocks: Iterable[nn.Module], x: Tensor, layout: SequenceLayout, *, is_causal: bool) -> Tensor:
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout, is_causal=is_causal, use_reentrant=False)
            else:
                x = block(x, layout, is_causal=is_causal)
        return x


def normal(*shape: int, std: float) -> nn.Parameter:
    """A parameter drawn from a normal distribution."""
    parameter = nn.Parameter(torch.empty(*shape))
    nn.init.normal_(parameter, std=std)
    return parameter


def init_attention(attention: Attention, *, std: float, out_std: float) -> None:
    """Normal weights, biases of zero."""
    for linear in (attention.query, attention.key, attention.value):
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
    nn.init.normal_(attention.out.weight, std=out_std)
    nn.init.zeros_(attention.out.bias)


def init_mlp(layers: MLP, *, std: float, out_std: float) -> None:
    """Normal weights, biases of zero."""
    first, _, second = layers
    assert isinstance(first, Linear)
    assert isinstance(second, Linear)
    nn.init.normal_(first.weight, std=std)
    nn.init.normal_(second.weight, std=out_std)
    nn.init.zeros_(first.bias)
    nn.init.zeros_(second.bias)


def mean_of_each(x: Float[Tensor, "N W"], layout: SequenceLayout) -> Float[Tensor, "S W"]:
    """The mean over the tokens of each sequence."""
    return torch.cat([x[:0], *(tokens.mean(dim=1) for tokens in split_buckets(x, layout))])
