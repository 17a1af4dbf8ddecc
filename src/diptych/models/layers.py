"""The pre-norm transformer of both towers (Radford et al. 2021, sec. 2.4; the layout of GPT-2).

All sequences of a batch are concatenated in one tensor of tokens, without padding; a `SequenceLayout` describes where each
begins. All images have the same length; texts are sorted by length (see `packing.py`).

Shapes: N tokens of all sequences, S sequences, W width, A query tokens, H heads, D head width.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diptych.core.deprecation import RenamedAttribute
from diptych.models.attention import AncestorIds, SequenceLayout, attend, attend_paths, attend_pooled
from diptych.models.config import Activation, TextConfig, ViTConfig
from diptych.models.single_query import AttentionHook


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in the dtype of its weights, which stay float32 in a half-precision model."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Normalized input, in the dtype of `x`."""
        normed = functional.layer_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU with which OpenAI trained its weights."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The activation, element by element."""
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
}


def norm_eps(config: ViTConfig | TextConfig) -> float:
    """The epsilon of a tower's layer norms.

    >>> norm_eps(TextConfig()), norm_eps(TextConfig(layout="siglip"))
    (1e-05, 1e-06)
    """
    if config.norm_eps is not None:
        return config.norm_eps
    return 1e-6 if config.layout == "siglip" else 1e-5


def hidden_width(width: int, ratio: float) -> int:
    """Hidden width of an MLP of this width and expansion ratio.

    >>> hidden_width(768, 2048 / 768)  # Without the small addend, rounding would give 2047.
    2048
    """
    return int(width * ratio + 1e-6)


class MLP(nn.Sequential):
    """Two linear layers with an activation in between, applied to each token."""

    def __init__(self, width: int, *, ratio: float, activation: Activation) -> None:
        hidden = hidden_width(width, ratio)
        super().__init__(nn.Linear(width, hidden), _ACTIVATIONS[activation](), nn.Linear(hidden, width))


class Attention(nn.Module):
    """Multi-head attention within each sequence.

    Query, key and value have separate linear layers, so that adapters can replace each of them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.hook: AttentionHook | None = None
        """If set, called with the attention weights (sequences, heads, queries, keys). A causal `forward` does not call it."""
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N W"], layout: SequenceLayout, *, is_causal: bool) -> Float[Tensor, "N W"]:
        """Self-attention. If causal, a token attends only to itself and earlier tokens of its sequence."""
        query, key, value = (self._split_heads(side(x)) for side in (self.query, self.key, self.value))  # N H D
        return self.out(attend(query, key, value, layout, is_causal=is_causal, hook=self.hook).flatten(1))

    def pooled(
        self, query_token: Float[Tensor, "S W"], x: Float[Tensor, "N W"], layout: SequenceLayout
    ) -> Float[Tensor, "S W"]:
        """Attention with one query per sequence, which attends to the whole sequence."""
        query = self.query(query_token)
        attended = attend_pooled(
            query, x, layout, key=self.key, value=self.value, heads=self.heads, hook=self.hook
        )  # S W
        return self.out(attended)

    def along_paths(
        self, query_token: Float[Tensor, "A W"], x: Float[Tensor, "N W"], paths: AncestorIds
    ) -> Float[Tensor, "A W"]:
        """Attention in which each query token attends to the tokens of its path; see `prefix_tree.py`."""
        query, key, value = (self._split_heads(side) for side in (self.query(query_token), self.key(x), self.value(x)))
        return self.out(attend_paths(query, key, value, paths).flatten(1))

    def _split_heads(self, x: Float[Tensor, "A W"]) -> Float[Tensor, "A H D"]:
        return x.unflatten(1, (self.heads, self.head_width))

    watcher = RenamedAttribute("hook")


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both residual branches."""

    def __init__(self, config: ViTConfig | TextConfig) -> None:
        super().__init__()
        self.norm_1 = LayerNorm(config.width, eps=norm_eps(config))
        self.attention = Attention(config.width, config.heads)
        self.norm_2 = LayerNorm(config.width, eps=norm_eps(config))
        self.mlp = MLP(config.width, ratio=config.mlp_ratio, activation=config.activation)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "N W"], layout: SequenceLayout, *, is_causal: bool) -> Float[Tensor, "N W"]:
        """The tokens after this block."""
        return self._add_and_mlp(x, self.attention(self.norm_1(x), layout, is_causal=is_causal))

    def pooled(
        self, x: Float[Tensor, "N W"], layout: SequenceLayout, token_idx: Int64[Tensor, " S"]
    ) -> Float[Tensor, "S W"]:
        """One token per sequence after this block, equal to `forward(...)[token_idx]`; the other tokens are not computed.

        Only the pooled token is used after the last block, so the other tokens need no query, output projection or MLP. In a
        causal tower, `token_idx` must select the last token of each sequence, because the selected token attends to all.
        """
        normed = self.norm_1(x)
        return self._add_and_mlp(x[token_idx], self.attention.pooled(normed[token_idx], normed, layout))

    def appended(
        self, token: Float[Tensor, "S W"], x: Float[Tensor, "N W"], layout: SequenceLayout
    ) -> Float[Tensor, "S W"]:
        """Return one more token per sequence after this block. It attends to the whole sequence; no token attends to it."""
        return self._add_and_mlp(token, self.attention.pooled(self.norm_1(token), self.norm_1(x), layout))

    def along_paths(
        self, x: Float[Tensor, "N W"], nodes: Int64[Tensor, " A"], paths: AncestorIds
    ) -> Float[Tensor, "A W"]:
        """The tokens of `nodes` after this block, where each node attends to the tokens of its path; see `prefix_tree.py`."""
        normed, is_all = self.norm_1(x), len(nodes) == len(x)
        tokens = x if is_all else x[nodes]
        return self._add_and_mlp(tokens, self.attention.along_paths(normed if is_all else normed[nodes], normed, paths))

    def _add_and_mlp(self, x: Float[Tensor, "A W"], attended: Float[Tensor, "A W"]) -> Float[Tensor, "A W"]:
        """Add the attention output, then the output of the MLP."""
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norm_2(x)))


class Transformer(nn.Module):
    """The blocks of a tower, initialized like OpenAI's text tower: standard deviations decrease with width and depth."""

    def __init__(self, config: ViTConfig | TextConfig) -> None:
        super().__init__()
        width, layers = config.width, config.layers
        self.gradient_checkpointing = False
        self.blocks = nn.ModuleList(Block(config) for _ in range(layers))
        for block in self.blocks:
            assert isinstance(block, Block)
            init_attention(block.attention, std=width**-0.5, out_std=(width * 2 * layers) ** -0.5)
            init_mlp(block.mlp, std=(2 * width) ** -0.5, out_std=(width * 2 * layers) ** -0.5)

    def forward(self, x: Float[Tensor, "N W"], layout: SequenceLayout, *, is_causal: bool) -> Float[Tensor, "N W"]:
        """All tokens after the last block."""
        return self._run_blocks(self.blocks, x, layout, is_causal=is_causal)

    def pooled(
        self, x: Float[Tensor, "N W"], layout: SequenceLayout, token_idx: Int64[Tensor, " S"], *, is_causal: bool
    ) -> Float[Tensor, "S W"]:
        """One token per sequence after the last block; see `Block.pooled`."""
        *body, last = self.blocks
        x = self._run_blocks(body, x, layout, is_causal=is_causal)
        assert isinstance(last, Block)
        return last.pooled(x, layout, token_idx)

    def appended(
        self, token: Float[Tensor, "S W"], x: Float[Tensor, "N W"], layout: SequenceLayout, *, is_causal: bool
    ) -> Float[Tensor, "S W"]:
        """Return one more token per sequence after the last block; see `Block.appended`."""
        *body, last = self.blocks
        for block in body:
            assert isinstance(block, Block)
            token = block.appended(token, x, layout)
            x = self._run_blocks([block], x, layout, is_causal=is_causal)
        assert isinstance(last, Block)
        return last.appended(token, x, layout)

    def _run_blocks(self, blocks: Iterable[nn.Module], x: Tensor, layout: SequenceLayout, *, is_causal: bool) -> Tensor:
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout, is_causal=is_causal, use_reentrant=False)
            else:
                x = block(x, layout, is_causal=is_causal)
        return x


def normal(*shape: int, std: float) -> nn.Parameter:
    """A parameter drawn from a normal distribution with mean 0."""
    parameter = nn.Parameter(torch.empty(*shape))
    nn.init.normal_(parameter, std=std)
    return parameter


def init_attention(attention: Attention, *, std: float, out_std: float) -> None:
    """Draw the weights from normal distributions and set the biases to 0; `out_std` is for the output projection."""
    for linear in (attention.query, attention.key, attention.value):
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
    nn.init.normal_(attention.out.weight, std=out_std)
    nn.init.zeros_(attention.out.bias)


def init_mlp(layers: MLP, *, std: float, out_std: float) -> None:
    """Draw the weights from normal distributions and set the biases to 0; `out_std` is for the second layer."""
    first, _, second = layers
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    nn.init.normal_(first.weight, std=std)
    nn.init.normal_(second.weight, std=out_std)
    nn.init.zeros_(first.bias)
    nn.init.zeros_(second.bias)
