"""The image tower as a small residual network, for small datasets and small machines.

Shapes: B batch, C channels, H W height and width in pixels or of a feature map, E embedding.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diptych.models.config import ConvNetConfig
from diptych.models.layers import LayerNorm
from diptych.models.modified_resnet import BatchNorm


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (He et al. 2016). Its shortcut downsamples by average pooling (He et al. 2019)."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm_1 = BatchNorm(width)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_2 = BatchNorm(width)
        self.shortcut = None
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(channels, width, 1, bias=False), BatchNorm(width)
            )
        nn.init.zeros_(self.norm_2.weight)  # Each block starts as its shortcut (Goyal et al. 2017, sec. 5.1).

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The feature map after this block."""
        inner = self.norm_2(self.conv_2(functional.relu(self.norm_1(self.conv_1(x)))))
        return functional.relu(inner + (x if self.shortcut is None else self.shortcut(x)))


class ConvNet(nn.Module):
    """Strided stem, stages of basic blocks, mean over the feature map, layer norm, projection.

    Most of the computation is in 3x3 convolutions with many channels on small feature maps, which are efficient on a CPU. The
    network has no position embeddings and accepts images of any size that is a multiple of its total stride, so training can
    start with small images.
    """

    def __init__(self, config: ConvNetConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        stem: list[nn.Module] = []
        channels, halvings = 3, config.stem_stride.bit_length() - 1
        for number in range(max(1, halvings)):
            width = first >> (halvings - 1 - number) if halvings else first
            stride = 2 if halvings else 1
            stem += [nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False), BatchNorm(width), nn.ReLU()]
            channels = width
        self.stem = nn.Sequential(*stem)
        self.stages = nn.ModuleList()
        for number, (width, num_blocks) in enumerate(zip(config.widths, config.layers, strict=True)):
            blocks = [BasicBlock(channels, width, stride=1 if number == 0 else 2)]
            blocks += [BasicBlock(width, width, stride=1) for _ in range(num_blocks - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = width
        self.norm_post = LayerNorm(last)
        self.projection = nn.Linear(last, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=last**-0.5)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of normalized pixels, not scaled to unit length. Tensors use the channels-last memory format."""
        x = self.stem(pixels.to(self.projection.weight.dtype, memory_format=torch.channels_last))
        for stage in self.stages:
            x = stage(x)
        return self.projection(self.norm_post(x.mean(dim=(2, 3))))
