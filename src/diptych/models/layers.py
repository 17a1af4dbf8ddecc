"""The pre-norm transformer that both towers stand on (Radford et al. 2021, sec. 2.4; GPT-2's layout).

Shapes: B batch, T tokens, W width, Q queried tokens, H heads.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from diptych.models.config import Activation


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The same shape."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention; queries may be fewer than keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T W"], *, is_causal: bool) -> Float[Tensor, "B T W"]:
        """Every token asks every token, or, when causal, itself and those before it."""
        q, k, v = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        return self._merge(functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal))

    def pooled(
        self, query: Float[Tensor, "B Q W"], x: Float[Tensor, "B T W"], *, visible: Bool[Tensor, "B 1 Q T"] | None
    ) -> Float[Tensor, "B Q W"]:
        """A few queries ask the tokens that they may see (all, if `visible` is None)."""
        width = x.shape[-1]
        q = functional.linear(query, self.qkv.weight[:width], self.qkv.bias[:width])
        k, v = functional.linear(x, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        q, k, v = self._split(q), self._split(k), self._split(v)
        return self._merge(functional.scaled_dot_product_attention(q, k, v, attn_mask=visible))

    def _split(self, x: Float[Tensor, "B T W"]) -> Float[Tensor, "B H T D"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _merge(self, x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B T W"]:
        merged: Tensor = self.out(x.transpose(1, 2).flatten(2))
        return merged


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, activation: Activation) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU() if activation == "gelu" else QuickGELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Float[Tensor, "B T W"], *, is_causal: bool) -> Float[Tensor, "B T W"]:
        """The next layer's tokens."""
        x = x + self.attention(self.norm_1(x), is_causal=is_causal)
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out

    def pooled(
        self, x: Float[Tensor, "B T W"], position: Int64[Tensor, " B"], *, is_causal: bool
    ) -> Float[Tensor, "B W"]:
        """The next layer's token at one position a row, exactly as `forward` gives it, and nothing for the others.

        After the last block only the pooled token is read, so nothing else needs its query, projection or MLP.
        """
        rows = torch.arange(x.shape[0], device=x.device)
        normed = self.norm_1(x)
        visible = None
        if is_causal:
            visible = (torch.arange(x.shape[1], device=x.device) <= position[:, None])[:, None, None, :]
        token = (
            x[rows, position] + self.attention.pooled(normed[rows, position][:, None], normed, visible=visible)[:, 0]
        )
        out: Tensor = token + self.mlp(self.norm_2(token))
        return out


class Transformer(nn.Module):
    """A stack of blocks. Initialised as OpenAI's text tower (deviations fall with width and depth)."""

    def __init__(self, width: int, layers: int, heads: int, *, mlp_ratio: float, activation: Activation) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, activation=activation) for _ in range(layers)
        )
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attention.out.weight, std=(width * 2 * layers) ** -0.5)
            nn.init.normal_(block.mlp[0].weight, std=(2 * width) ** -0.5)  # type: ignore[arg-type]
            nn.init.normal_(block.mlp[2].weight, std=(width * 2 * layers) ** -0.5)  # type: ignore[arg-type]
            for linear in (block.attention.qkv, block.attention.out, block.mlp[0], block.mlp[2]):
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "B T W"], *, is_causal: bool) -> Float[Tensor, "B T W"]:
        """All tokens after the last block."""
        for block in self.blocks:
            x = block(x, is_causal=is_causal)
        return x

    def pooled(
        self, x: Float[Tensor, "B T W"], position: Int64[Tensor, " B"], *, is_causal: bool
    ) -> Float[Tensor, "B W"]:
        """The token at one position a row after the last block."""
        *body, last = self.blocks
        for block in body:
            x = block(x, is_causal=is_causal)
        assert isinstance(last, Block)
        return last.pooled(x, position, is_causal=is_causal)
