"""CLIP: an image tower and a text tower, hinged at one embedding space (Radford et al. 2021, fig. 3).

Shapes: B images, U texts, T tokens of the longest text, N tokens of all texts, H W pixels, E embedding. A text that several
images of a training batch share is there once.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, assert_never

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from diptych.core.errors import ConfigError
from diptych.models.config import STAGED, CLIPConfig, ConvNetConfig, ImageConfig, ResNetConfig, ViTConfig, reads
from diptych.models.convnet import ConvNet
from diptych.models.modified_resnet import ModifiedResNet
from diptych.models.prefix_tree import PrefixTree
from diptych.models.text_transformer import TextTransformer
from diptych.models.vision_transformer import VisionTransformer

MAX_LOGIT_SCALE = 100.0


class CLIPOutput(NamedTuple):
    """All that a loss needs."""

    image_emb: Float[Tensor, "B E"]
    """Of unit length."""
    text_emb: Float[Tensor, "U E"]
    """Of unit length."""
    logit_scale: Float[Tensor, ""]
    """What cosines are multiplied by: the inverse temperature."""
    logit_bias: Float[Tensor, ""] | None
    """What is added then; None for a model without."""


class _Undrawn(TorchFunctionMode):
    """Leaves initial weights undrawn: before it draws some for tensors without memory, PyTorch loads its compiler, a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        named = kwargs or {}
        if func.__name__ == "normal_":
            return args[0] if args else named["tensor"]
        return func(*args, **named)


class CLIP(nn.Module):
    """Two towers and a learned temperature. Knows no device, no precision and no other rank."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = image_tower(config.image, config.embed_dim)
        self.text_tower = TextTransformer(config.text, config.embed_dim)
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(config.init_temperature)))
        bias = config.init_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    @classmethod
    def from_weights(cls, config: CLIPConfig, weights: Mapping[str, Tensor]) -> "CLIP":
        """The model with these very tensors, in evaluation mode; no random weights are drawn first.

        Raises:
            RuntimeError: names or shapes are not those of the config.
        """
        model = cls.without_memory(config)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    @classmethod
    def without_memory(cls, config: CLIPConfig) -> "CLIP":
        """The model on PyTorch's `meta` device: names and shapes without numbers."""
        with torch.device("meta"), _Undrawn():
            return cls(config)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """What cosines are multiplied by: the inverse temperature."""
        return self.log_logit_scale.exp()

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Unit embeddings of normalised pixels, in float32 whatever the weights are.

        Raises:
            ConfigError: the pixels are of a size that the model does not read.
        """
        if not reads(self.config.image, *pixels.shape[-2:]):
            raise ConfigError(
                f"the pixels are {pixels.shape[-2]}x{pixels.shape[-1]}, the model reads {self.config.image.image_px} px"
            )
        return functional.normalize(self.image_tower(pixels).float(), dim=-1)

    def encode_text(
        self, ids: Int64[Tensor, "U T"] | Int64[Tensor, " N"], lengths: Int64[Tensor, " U"]
    ) -> Float[Tensor, "U E"]:
        """Unit embeddings of texts, padded after their `lengths` or one after another without padding; in float32."""
        return functional.normalize(self.text_tower(ids, lengths).float(), dim=-1)

    def encode_text_tree(self, tree: PrefixTree) -> Float[Tensor, "U E"]:
        """The same of texts whose beginnings are shared; the text tower must be causal and read its last token."""
        return functional.normalize(self.text_tower.along_tree(tree).float(), dim=-1)

    def forward(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        ids: Int64[Tensor, "U T"] | Int64[Tensor, " N"],
        lengths: Int64[Tensor, " U"],
    ) -> CLIPOutput:
        """Both embeddings, the logit scale and the logit bias."""
        return CLIPOutput(self.encode_image(pixels), self.encode_text(ids, lengths), self.logit_scale, self.logit_bias)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the logit scale within [1, 100]; called after each step (Radford et al. 2021, sec. 2.5)."""
        self.log_logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Whether blocks forget their activations and compute them again backward: less memory, a third more time.

        Raises:
            ConfigError: the image tower has batch norms, which would count every batch twice.
        """
        if enabled and isinstance(self.config.image, STAGED):
            raise ConfigError("gradient checkpointing needs transformers; model.image is convolutions with batch norms")
        self.text_tower.transformer.gradient_checkpointing = enabled
        if isinstance(self.image_tower, VisionTransformer):
            self.image_tower.transformer.gradient_checkpointing = enabled

    @torch.no_grad()
    def convert(self, dtype: torch.dtype) -> "CLIP":
        """Give the weights another precision, in place; norms, temperature and bias stay float32."""
        for module in self.modules():
            if module is self or isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
        return self


def image_tower(config: ImageConfig, embed_dim: int) -> VisionTransformer | ModifiedResNet | ConvNet:
    """The image tower that a config describes, with random weights."""
    match config:
        case ViTConfig():
            return VisionTransformer(config, embed_dim)
        case ResNetConfig():
            return ModifiedResNet(config, embed_dim)
        case ConvNetConfig():
            return ConvNet(config, embed_dim)
        case _:
            assert_never(config)
