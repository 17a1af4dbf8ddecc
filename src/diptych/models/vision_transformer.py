"""The image tower as a vision transformer. Shapes: B batch, H W pixels, N patches, P numbers a patch, E embedding."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.models.config import ViTConfig
from diptych.models.layers import Transformer


class PatchStem(nn.Module):
    """Each patch by one linear map: a convolution with stride and kernel of the patch's side, as one matrix product."""

    def __init__(self, patch_px: int, width: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.embed = nn.Linear(3 * patch_px**2, width, bias=False)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N Width"]:
        """One token a patch, row by row; a patch is flattened as (channel, row, column)."""
        side = self.patch_px
        grid = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # B 3 rows side columns side
        tokens: Tensor = self.embed(grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        return tokens


class ConvStem(nn.Module):
    """A 3x3 convolution of stride 2 for each halving down to a patch (Xiao et al. 2021, "Early convolutions")."""

    def __init__(self, patch_px: int, width: int) -> None:
        super().__init__()
        halvings = patch_px.bit_length() - 1
        channels = [3, *(max(16, width >> (halvings - 1 - i)) for i in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N Width"]:
        """One token a patch, row by row."""
        tokens: Tensor = self.layers(pixels).flatten(2).transpose(1, 2)
        return tokens


class VisionTransformer(nn.Module):
    """Stem, class token, positions, layer norm, blocks, pooling, layer norm, projection (Radford et al. 2021, sec. 2.4)."""

    def __init__(self, config: ViTConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.stem = PatchStem(config.patch_px, width) if config.stem == "patch" else ConvStem(config.patch_px, width)
        self.class_emb = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position_emb = nn.Parameter(torch.randn(config.num_patches + 1, width) * width**-0.5)
        self.norm_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.layers, config.heads, mlp_ratio=config.mlp_ratio, activation=config.activation
        )
        self.norm_post = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of normalised pixels, not yet of unit length."""
        tokens = self.stem(pixels)
        class_token = self.class_emb.expand(len(tokens), 1, -1)
        x = self.norm_pre(torch.cat([class_token, tokens], dim=1) + self.position_emb)
        if self.config.pooling == "cls":
            first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            pooled = self.transformer.pooled(x, first, is_causal=False)
        else:
            pooled = self.transformer(x, is_causal=False)[:, 1:].mean(dim=1)
        out: Tensor = self.projection(self.norm_post(pooled))
        return out
