"""The text tower: a causal transformer read at the end mark. Shapes: B batch, T tokens, E embedding."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diptych.models.config import TextConfig
from diptych.models.layers import Transformer


class TextTransformer(nn.Module):
    """Tokens and positions, causal blocks, the end mark's token, layer norm, projection (Radford et al. 2021, sec. 2.4).

    Attention is causal and padding comes last, so no token that is read ever sees padding.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(config.vocab_size, config.width)
        self.position_emb = nn.Parameter(torch.randn(config.context_length, config.width) * 0.01)
        self.transformer = Transformer(
            config.width, config.layers, config.heads, mlp_ratio=config.mlp_ratio, activation=config.activation
        )
        self.norm_post = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=config.width**-0.5)

    def forward(self, ids: Int64[Tensor, "B T"], lengths: Int64[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Embeddings of padded texts whose end mark stands at `lengths - 1`, not yet of unit length."""
        x = self.token_emb(ids) + self.position_emb[: ids.shape[1]]
        pooled = self.transformer.pooled(x, lengths - 1, is_causal=True)
        out: Tensor = self.projection(self.norm_post(pooled))
        return out
