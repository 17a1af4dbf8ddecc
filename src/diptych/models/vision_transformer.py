"""The image tower as a vision transformer.

Shapes: B batch, H W pixels, N patches, K patches kept by dropout, D width, T tokens of an image, P width
of the pooled vector, E embedding.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.images.transforms import Pixels, height_width
from diptych.models.attention import LengthBucket, SequenceLayout, attend_pooled
from diptych.models.config import ViTConfig
from diptych.models.layers import MLP, Attention, LayerNorm, Transformer, init_attention, init_mlp, norm_eps, normal
from diptych.models.single_query import AttentionHook


class PatchStem(nn.Module):
    """Patch embedding by one linear layer. It equals a convolution whose kernel size and stride are the patch size."""

    def __init__(self, patch_px: Pixels, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.height, self.width = height_width(patch_px)
        self.embed = nn.Linear(3 * self.height * self.width, width, bias=bias)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """One token per patch, in row-major order. A patch is flattened in the order (channel, row, column)."""
        grid = pixels.unflatten(3, (-1, self.width)).unflatten(2, (-1, self.height))  # B 3 rows height columns width
        return self.embed(grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class ConvStem(nn.Module):
    """Patch embedding by 3x3 convolutions with stride 2 (Xiao et al. 2021, "Early convolutions")."""

    def __init__(self, patch_px: int, width: int) -> None:
        super().__init__()
        halvings = patch_px.bit_length() - 1
        channels = [3, *(max(16, width >> (halvings - 1 - i)) for i in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.GroupNorm(1, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """One token per patch, in row-major order."""
        return self.layers(pixels).flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """Attention with one learned query over all tokens, then a residual MLP (Zhai et al. 2022; the head of SigLIP)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.query = normal(width, std=width**-0.5)
        self.attention = Attention(width, config.heads)
        self.norm = LayerNorm(width, eps=norm_eps(config))
        self.mlp = MLP(width, ratio=config.mlp_ratio, activation=config.activation)
        init_attention(self.attention, std=width**-0.5, out_std=(2 * width) ** -0.5)
        init_mlp(self.mlp, std=(2 * width) ** -0.5, out_std=(2 * width) ** -0.5)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Return one vector per image."""
        query = self.query.expand(x.shape[0], -1)  # B D
        layout = SequenceLayout((LengthBucket(x.shape[0], x.shape[1]),))
        attended = self.attention.pooled(query, x.flatten(0, 1), layout)
        return attended + self.mlp(self.norm(attended))


class EmbeddingPool(nn.Module):
    """Attention with one learned query over all tokens, in the width of the embedding (CoCa; Yu et al. 2022).

    open_clip's pooling has 256 queries. The output of the first one is the embedding; the others are inputs of a decoder.
    """

    def __init__(self, config: ViTConfig, embed_dim: int) -> None:
        super().__init__()
        self.heads = config.pool_heads or config.heads
        self.hook: AttentionHook | None = None
        """If set, called with the attention weights, as in `Attention`."""
        self.query_emb = normal(embed_dim, std=1.0)
        self.norm_query = LayerNorm(embed_dim, eps=norm_eps(config))
        self.norm_token = LayerNorm(config.width, eps=norm_eps(config))
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(config.width, embed_dim)
        self.value = nn.Linear(config.width, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        """Return one vector per image."""
        query = self.query(self.norm_query(self.query_emb)).expand(x.shape[0], -1)  # B E
        tokens = self.norm_token(x).flatten(0, 1)
        layout = SequenceLayout((LengthBucket(x.shape[0], x.shape[1]),))
        return self.out(
            attend_pooled(query, tokens, layout, key=self.key, value=self.value, heads=self.heads, hook=self.hook)
        )


class VisionTransformer(nn.Module):
    """Patch embedding, class token, position embeddings, layer norm, blocks, pooling, layer norm, projection.

    The architecture is that of Radford et al. 2021, sec. 2.4, or SigLIP's if `config.layout` is "siglip".
    """

    def __init__(self, config: ViTConfig, embed_dim: int) -> None:
        super().__init__()
        width, is_siglip = config.width, config.layout == "siglip"
        self.config = config
        covered = config.covered_px
        self._covered_px = None if covered == height_width(config.image_px) else covered
        self.stem = (
            PatchStem(config.patch_px, width, bias=is_siglip)
            if config.stem == "patch"
            else ConvStem(height_width(config.patch_px)[0], width)
        )
        rows, columns = config.grid
        self.class_emb = normal(width, std=width**-0.5) if config.num_extra_tokens else None
        self.position_emb = normal(config.num_extra_tokens + rows * columns, width, std=width**-0.5)
        has_norm_pre = config.has_norm_pre and not is_siglip
        self.norm_pre = LayerNorm(width, eps=norm_eps(config)) if has_norm_pre else nn.Identity()
        self.transformer = Transformer(config)
        pooled_width = embed_dim if config.pooling == "coca" else width
        self.norm_post = LayerNorm(pooled_width, eps=norm_eps(config))
        self.pool = _pool(config, embed_dim)
        self.projection = nn.Identity() if is_siglip else nn.Linear(pooled_width, embed_dim, bias=False)
        if isinstance(self.projection, nn.Linear):
            nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of normalized pixels, not scaled to unit length."""
        return self.projection(self._pooled(self.norm_pre(self._tokens(pixels))))

    def _tokens(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T D"]:
        if self._covered_px is not None:  # The image size is not a multiple of the patch size.
            pixels = pixels[:, :, : self._covered_px[0], : self._covered_px[1]]
        patches = self.stem(pixels.to(self.position_emb.dtype))
        extra = self.config.num_extra_tokens
        x: Tensor = self._drop_patches(patches + self.position_emb[extra:])
        if self.class_emb is None:
            return x
        class_token = (self.class_emb + self.position_emb[0]).expand(x.shape[0], 1, -1)
        return torch.cat([class_token, x], dim=1)

    def _drop_patches(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B K D"]:
        """In training, a random subset of the patches of each image (FLIP, Li et al. 2023)."""
        if not self.training or self.config.patch_dropout == 0:
            return patches
        batch, num, width = patches.shape
        num_kept = max(1, int(num * (1 - self.config.patch_dropout)))
        kept = torch.rand(batch, num, device=patches.device).topk(num_kept, dim=1).indices
        return patches.gather(1, kept[:, :, None].expand(-1, -1, width))

    def _pooled(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B P"]:
        batch, num = x.shape[:2]
        layout, flat = SequenceLayout((LengthBucket(batch, num),)), x.flatten(0, 1)
        if self.config.pooling == "cls":
            class_idx = torch.arange(0, batch * num, num, device=x.device)
            return self.norm_post(self.transformer.pooled(flat, layout, class_idx, is_causal=False))
        tokens = self.transformer(flat, layout, is_causal=False).unflatten(0, (batch, num))
        if self.pool is None:
            patches = tokens[:, self.config.num_extra_tokens :]
            if self.config.norms_before_mean:
                return self.norm_post(patches).mean(dim=1)
            return self.norm_post(patches.mean(dim=1))
        if self.config.pooling == "coca":
            return self.norm_post(self.pool(tokens))
        return self.pool(self.norm_post(tokens))


def _pool(config: ViTConfig, embed_dim: int) -> AttentionPool | EmbeddingPool | None:
    match config.pooling:
        case "attention":
            return AttentionPool(config)
        case "coca":
            return EmbeddingPool(config, embed_dim)
        case _:
            return None
