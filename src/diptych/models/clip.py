"""CLIP: an image tower and a text tower with a joint embedding space (Radford et al. 2021, fig. 3).

Shapes: B images, U texts, T tokens of the longest text, N tokens of all texts, H W pixels, E embedding. U can be smaller than
B: a text that several images of a training batch share is encoded once.
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
from diptych.models.config import (
    STAGED,
    CLIPConfig,
    ConvNetConfig,
    ImageConfig,
    ResNetConfig,
    TextConfig,
    TextTowerConfig,
    TimmConfig,
    TransformersConfig,
    ViTConfig,
    reads,
)
from diptych.models.convnet import ConvNet
from diptych.models.modified_resnet import ModifiedResNet
from diptych.models.packing import PackedTexts
from diptych.models.prefix_tree import PrefixTree
from diptych.models.text_transformer import TextTransformer
from diptych.models.timm_tower import BATCH_NORMS, TimmTower
from diptych.models.transformers_tower import TransformersTower
from diptych.models.vision_transformer import VisionTransformer

MAX_LOGIT_SCALE = 100.0
"""Upper limit of the logit scale (Radford et al. 2021, sec. 2.5)."""


class CLIPOutput(NamedTuple):
    """The inputs of a loss."""

    image_emb: Float[Tensor, "B E"]
    """Of unit length."""
    text_emb: Float[Tensor, "U E"]
    """Of unit length."""
    logit_scale: Float[Tensor, ""]
    """Factor of the cosine similarities: the inverse temperature."""
    logit_bias: Float[Tensor, ""] | None
    """Added to the scaled cosine similarities; None if the model has no bias."""


class _SkipInit(TorchFunctionMode):
    """Skips random initialization. On the `meta` device, PyTorch would import its compiler for it, which takes a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func.__name__ == "normal_":
            return args[0] if args else named["tensor"]
        return func(*args, **named)


class CLIP(nn.Module):
    """Two towers, a learned temperature and an optional logit bias. A plain single-device module.

    >>> from diptych.models.config import TextConfig
    >>> image = ViTConfig(image_px=32, patch_px=16, width=32, layers=1, heads=2)
    >>> text = TextConfig(vocab_size=100, width=32, layers=1, heads=2)
    >>> model = CLIP(CLIPConfig(embed_dim=16, image=image, text=text))
    >>> model.encode_image(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 16])
    >>> model.encode_text(torch.tensor([[1, 5, 2, 0], [1, 7, 8, 2]]), torch.tensor([3, 4])).shape
    torch.Size([2, 16])
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = image_tower(config.image, config.embed_dim)
        self.text_tower = text_tower(config.text, config.embed_dim)
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(config.init_temperature)))
        bias = config.init_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    @classmethod
    def from_weights(cls, config: CLIPConfig, weights: Mapping[str, Tensor]) -> "CLIP":
        """A model in evaluation mode whose parameters are the tensors of `weights`, without a copy.

        Raises:
            RuntimeError: the names or shapes of `weights` do not match the config.
        """
        model = cls.without_memory(config)
        model.load_state_dict(weights, assign=True)
        model.fill_buffers()
        return model.eval()

    @classmethod
    def without_memory(cls, config: CLIPConfig) -> "CLIP":
        """A model on PyTorch's `meta` device, which has names and shapes but no data."""
        with torch.device("meta"), _SkipInit():
            return cls(config)

    def fill_buffers(self) -> None:
        """Compute the buffers of timm and transformers towers that weights files do not contain.

        Call this method after loading weights into a model that was built with `without_memory`.
        """
        for tower in (self.image_tower, self.text_tower):
            if isinstance(tower, TimmTower | TransformersTower):
                tower.fill_buffers()

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """Factor of the cosine similarities: the inverse temperature."""
        return self.log_logit_scale.exp()

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of unit length of normalized pixels, in float32 for weights of any dtype.

        Raises:
            ConfigError: the model does not support this image size.
        """
        if not reads(self.config.image, *pixels.shape[-2:]):
            raise ConfigError(
                f"the pixels are {pixels.shape[-2]}x{pixels.shape[-1]}, the model reads {self.config.image.image_px} px"
            )
        return functional.normalize(self.image_tower(pixels).float(), dim=-1)

    def encode_text(
        self, ids: Int64[Tensor, "U T"] | Int64[Tensor, " N"] | PackedTexts, lengths: Int64[Tensor, " U"] | None = None
    ) -> Float[Tensor, "U E"]:
        """Embeddings of unit length of texts, in float32 for weights of any dtype.

        Args:
            ids: token ids, one padded row per text; all texts concatenated without padding; or packed texts.
            lengths: number of tokens of each text, including start and end token. They are read on the CPU and can stay there.
                Packed texts need none.
        """
        return functional.normalize(self.text_tower(ids, lengths).float(), dim=-1)

    def encode_text_tree(self, tree: PrefixTree) -> Float[Tensor, "U E"]:
        """Embeddings of unit length of the texts of a prefix tree. `text_tower.supports_prefix_sharing` must be True."""
        assert isinstance(self.text_tower, TextTransformer)
        return functional.normalize(self.text_tower.along_tree(tree).float(), dim=-1)

    def forward(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        ids: Int64[Tensor, "U T"] | Int64[Tensor, " N"] | PackedTexts,
        lengths: Int64[Tensor, " U"] | None = None,
    ) -> CLIPOutput:
        """Embeddings of images and texts, the logit scale and the logit bias; see `encode_text` for the texts."""
        return CLIPOutput(self.encode_image(pixels), self.encode_text(ids, lengths), self.logit_scale, self.logit_bias)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Clamp the logit scale to [1, 100]. Call this after each optimizer step (Radford et al. 2021, sec. 2.5)."""
        self.log_logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Enable or disable recomputation of activations in the backward pass: less memory, a third more time.

        Raises:
            ConfigError: the image tower has batch norms, whose running statistics would include every batch twice, or another
                library does not support it for its tower.
        """
        if enabled and isinstance(self.config.image, STAGED):
            raise ConfigError(
                "gradient checkpointing needs transformers; model.image uses convolutions with batch norms"
            )
        for tower in (self.image_tower, self.text_tower):
            if isinstance(tower, VisionTransformer | TextTransformer):
                tower.transformer.gradient_checkpointing = enabled
            elif isinstance(tower, TimmTower | TransformersTower):
                tower.set_gradient_checkpointing(enabled)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        tower = self.text_tower
        return (tower.transformer if isinstance(tower, TextTransformer) else tower).gradient_checkpointing

    @torch.no_grad()
    def convert(self, dtype: torch.dtype) -> "CLIP":
        """Convert the weights to `dtype` in place and return the model. Temperature and logit bias stay float32.

        Norms of Diptych's own towers also stay float32. Norms of other libraries are converted, because they need weights of
        the same dtype as their input.
        """
        others = [t for t in (self.image_tower, self.text_tower) if isinstance(t, TimmTower | TransformersTower)]
        converted = {module for tower in others for module in tower.modules()}
        for module in self.modules():
            is_norm = isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm)
            if module is self or (is_norm and module not in converted):
                continue
            if module in converted and isinstance(module, BATCH_NORMS):
                module.to(dtype)
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
        return self


def text_tower(config: TextTowerConfig, embed_dim: int) -> TextTransformer | TransformersTower:
    """Build the text tower of this config, with random weights."""
    match config:
        case TextConfig():
            return TextTransformer(config, embed_dim)
        case TransformersConfig():
            return TransformersTower(config, embed_dim)
        case _:
            assert_never(config)


def image_tower(config: ImageConfig, embed_dim: int) -> VisionTransformer | ModifiedResNet | ConvNet | TimmTower:
    """Build the image tower of this config, with random weights."""
    match config:
        case ViTConfig():
            return VisionTransformer(config, embed_dim)
        case ResNetConfig():
            return ModifiedResNet(config, embed_dim)
        case ConvNetConfig():
            return ConvNet(config, embed_dim)
        case TimmConfig():
            return TimmTower(config, embed_dim)
        case _:
            assert_never(config)
