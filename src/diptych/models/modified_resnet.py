"""The image tower as CLIP's ModifiedResNet (Radford et al. 2021, sec. 2.4; the details follow OpenAI's `model.py`).

It differs from He et al. (2016) in three ways: three stem convolutions instead of one, average pooling before every
stride (Zhang 2019), and attention pooling instead of the mean. Shapes: B batch, C channels, H W pixels, E embedding.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diptych.models.config import ResNetConfig
from diptych.models.layers import normal
from diptych.models.single_query import single_query_attention

EXPANSION = 4
"""Ratio of a bottleneck's output channels to its inner channels."""


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that computes in the dtype of its weights, which stay float32 in a half-precision model."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalized input, in the dtype of `x`."""
        normed: Tensor = super().forward(x.to(self.weight.dtype))
        return normed.to(x.dtype)


class Bottleneck(nn.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution. Average pooling replaces strides, for anti-aliasing."""

    def __init__(self, channels: int, inner: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv_1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm_1 = BatchNorm(inner)
        self.conv_2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm_2 = BatchNorm(inner)
        self.conv_3 = nn.Conv2d(inner, inner * EXPANSION, 1, bias=False)
        self.norm_3 = BatchNorm(inner * EXPANSION)
        self.shortcut = None
        if stride > 1 or channels != inner * EXPANSION:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, inner * EXPANSION, 1, bias=False), BatchNorm(inner * EXPANSION)
            )
        nn.init.zeros_(self.norm_3.weight)  # Each block starts as its shortcut (Goyal et al. 2017, sec. 5.1).

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The feature map after this block."""
        inner = functional.relu(self.norm_1(self.conv_1(x)))
        inner = functional.relu(self.norm_2(self.conv_2(inner)))
        inner = self.norm_3(self.conv_3(_pooled(inner, self.stride)))
        direct = x if self.shortcut is None else self.shortcut(_pooled(x, self.stride))
        return functional.relu(inner + direct)


class MapAttentionPool(nn.Module):
    """Attention pooling: the mean of the feature map is the query; the mean and all positions are keys and values."""

    def __init__(self, grid: tuple[int, int], width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.position_emb = normal(1 + grid[0] * grid[1], width, std=width**-0.5)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, embed_dim)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        """One vector per image. Only the query of the mean is computed."""
        features = x.flatten(2).transpose(1, 2)  # B HW C
        tokens = torch.cat([features.mean(dim=1, keepdim=True), features], dim=1) + self.position_emb  # B 1+HW C
        attended = single_query_attention(self.query(tokens[:, 0]), [tokens], self.key, self.value, heads=self.heads)
        return self.out(attended)


class ModifiedResNet(nn.Module):
    """Stem, four stages of bottleneck blocks, attention pooling."""

    def __init__(self, config: ResNetConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.conv_1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.norm_1 = BatchNorm(width // 2)
        self.conv_2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.norm_2 = BatchNorm(width // 2)
        self.conv_3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.norm_3 = BatchNorm(width)
        self.stages = nn.ModuleList()
        channels = width
        for number, num_blocks in enumerate(config.layers):
            inner, stride = width << number, 1 if number == 0 else 2
            blocks = [Bottleneck(channels, inner, stride=stride)]
            channels = inner * EXPANSION
            blocks += [Bottleneck(channels, inner, stride=1) for _ in range(num_blocks - 1)]
            self.stages.append(nn.Sequential(*blocks))
        self.pool = MapAttentionPool(config.grid, channels, config.heads, embed_dim)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of normalized pixels, not scaled to unit length.

        Tensors use the channels-last memory format, which shortens a training step on a CPU by a third.
        """
        pixels = pixels.to(self.conv_1.weight.dtype, memory_format=torch.channels_last)
        x = functional.relu(self.norm_1(self.conv_1(pixels)))
        x = functional.relu(self.norm_2(self.conv_2(x)))
        x = functional.relu(self.norm_3(self.conv_3(x)))
        x = functional.avg_pool2d(x, 2)
        for stage in self.stages:
            x = stage(x)
        return self.pool(x)


def _pooled(x: Tensor, stride: int) -> Tensor:
    return functional.avg_pool2d(x, stride) if stride > 1 else x
