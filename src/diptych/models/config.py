"""Architecture of a CLIP model: one config per kind of tower, and `CLIPConfig` for the whole model."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.images.transforms import PixelConfig, Pixels, height_width
from diptych.models.limits import (
    MAX_CONTEXT_LENGTH,
    MAX_LAYERS,
    MAX_STAGES,
    MAX_VOCAB_SIZE,
    MAX_WIDTH,
    check_at_most,
    check_image_px,
    check_norm_eps,
    check_resize_px,
    check_share,
    check_transformer,
    write_squares_as_one_number,
)
from diptych.models.third_party_config import TimmConfig, TransformersConfig
from diptych.tokenizers.clip_bpe import VOCAB_SIZE as CLIP_VOCAB_SIZE
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.preparation import TextPreparation

__all__ = [
    "MAX_CONTEXT_LENGTH",
    "MAX_LAYERS",
    "MAX_STAGES",
    "MAX_VOCAB_SIZE",
    "MAX_WIDTH",
    "STAGED",
    "Activation",
    "CLIPConfig",
    "ConvNetConfig",
    "ImageConfig",
    "ResNetConfig",
    "TextConfig",
    "TextTowerConfig",
    "TimmConfig",
    "TransformersConfig",
    "ViTConfig",
    "reads",
]
Activation: TypeAlias = Literal["gelu", "quick_gelu", "gelu_tanh"]
"""`quick_gelu` is x * sigmoid(1.702 x), which OpenAI's weights need; `gelu_tanh` is the tanh approximation that SigLIP uses."""

_WITHOUT_PREPARATION = ("clip-bpe", "learned-bpe", "character", "hashing")
"""Tokenizers with fixed rules that ignore the text preparation."""


@settings
class ViTConfig:
    """A vision transformer (Dosovitskiy et al. 2021), with CLIP's additional layer norm before the first block."""

    kind: Literal["vit"] = "vit"
    """Distinguishes the kinds of image towers in a config file."""
    image_px: Pixels = 224
    """Input size in pixels: the side of a square, or height and width."""
    patch_px: Pixels = 32
    """Patch size in pixels: the side of a square, or height and width; divides `image_px`, except in SigLIP's layout, which
    ignores the remaining pixels at the right and bottom edges (for example with 384 px and patches of 14 px)."""
    stem: Literal["patch", "conv"] = "patch"
    """Patch embedding: one linear layer as in the paper, or strided 3x3 convolutions, which learn faster from small datasets
    (Xiao et al. 2021)."""
    width: int = 768
    """Width of a token; a multiple of `heads`."""
    layers: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Ratio of the MLPs' hidden width to `width`."""
    activation: Activation = "gelu"
    """Activation function of the MLPs."""
    pooling: Literal["cls", "mean", "attention", "coca"] = "cls"
    """How tokens are pooled: `cls` is the class token, `mean` the mean over the patches, `attention` attention with one learned
    query (SigLIP; Zhai et al. 2022), and `coca` the same in the width of the embedding (Yu et al. 2022)."""
    layout: Literal["clip", "siglip"] = "clip"
    """`siglip` has no class token, no norm before the first block, a bias in the patch embedding, no projection, and an
    epsilon of 1e-6 in its norms."""
    has_norm_pre: bool = field(default=True, repr=False)
    """Whether CLIP's layout has a layer norm before the first block; CLIPA (Li et al. 2023) has none."""
    norm_eps: float | None = field(default=None, repr=False)
    """Epsilon of the layer norms; None for that of the layout."""
    norms_before_mean: bool = field(default=False, repr=False)
    """For `mean`, whether the last norm comes before the averaging instead of after it."""
    pool_heads: int | None = field(default=None, repr=False)
    """For `coca`, the number of attention heads of the pooling; divides `embed_dim`. None for `heads`."""
    patch_dropout: float = 0.0
    """Share of the patches that are dropped in training (FLIP, Li et al. 2023), within [0, 1)."""
    dropout: float = 0.0
    """Dropout probability after attention and MLP (Vaswani et al. 2017, sec. 5.4), within [0, 1)."""

    def __post_init__(self) -> None:
        check_transformer("model.image", self.width, self.layers, self.heads, self.mlp_ratio)
        check_image_px(self.image_px)
        write_squares_as_one_number(self, "image_px", "patch_px")
        height, width = height_width(self.patch_px)
        sides = zip(height_width(self.image_px), (height, width), strict=True)
        has_rest = any(image % patch for image, patch in sides if patch > 0)
        is_covered = not has_rest or (self.layout == "siglip" and self.stem == "patch")
        if min(height, width) < 1 or not is_covered or min(self.grid) < 1:
            raise ConfigError(f"model.image.image_px is {self.image_px}, not a multiple of patch_px {self.patch_px}")
        if self.stem == "conv" and (height != width or height & (height - 1)):
            raise ConfigError(
                f"model.image.patch_px is {self.patch_px}; a convolutional stem halves the size, so it needs a power of 2"
            )
        check_share("model.image.patch_dropout", self.patch_dropout)
        check_share("model.image.dropout", self.dropout)
        check_norm_eps("model.image.norm_eps", self.norm_eps)
        if self.layout == "siglip" and self.pooling in ("cls", "coca"):
            raise ConfigError(
                f"model.image.pooling is '{self.pooling}', but SigLIP's layout has no class token; use 'attention'"
            )
        if self.pool_heads is not None and self.pool_heads < 1:
            raise ConfigError(f"model.image.pool_heads is {self.pool_heads}; it must be at least 1")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_height, patch_width) = height_width(self.image_px), height_width(self.patch_px)
        return (height // max(patch_height, 1), width // max(patch_width, 1))

    @property
    def covered_px(self) -> tuple[int, int]:
        """Height and width in pixels of the part of an image that the patches cover, from the upper left corner."""
        (rows, columns), (patch_height, patch_width) = self.grid, height_width(self.patch_px)
        return (rows * patch_height, columns * patch_width)

    @property
    def num_extra_tokens(self) -> int:
        """Number of tokens before the patches: 1 with a class token, else 0."""
        return 1 if self.layout == "clip" else 0


@settings
class ResNetConfig:
    """CLIP's ModifiedResNet (Radford et al. 2021, sec. 2.4). The defaults are those of RN50."""

    kind: Literal["resnet"] = "resnet"
    """Distinguishes the kinds of image towers in a config file."""
    image_px: Pixels = 224
    """Input size in pixels: the side of a square, or height and width; a multiple of 32."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Number of bottleneck blocks of each of the four stages."""
    width: int = 64
    """Channels after the stem; the last stage has 32 times as many."""
    heads: int = 32
    """Attention heads of the attention pooling; divides 32 times `width`."""

    def __post_init__(self) -> None:
        write_squares_as_one_number(self, "image_px")
        if min(self.layers) < 1 or self.heads < 1 or self.width < 2 or self.width % 2:
            raise ConfigError(
                f"model.image: layers {self.layers} and heads {self.heads} must be at least 1, width {self.width} even"
            )
        check_at_most("model.image.width", self.width, MAX_WIDTH // 32)
        check_at_most("model.image.layers", max(self.layers), MAX_LAYERS)
        check_image_px(self.image_px)
        if (32 * self.width) % self.heads:
            raise ConfigError(f"model.image: 32 times width {self.width} is not a multiple of heads {self.heads}")
        if any(side < 32 or side % 32 for side in height_width(self.image_px)):
            raise ConfigError(f"model.image.image_px is {self.image_px}; a ResNet needs a multiple of 32")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last stage's feature map."""
        height, width = height_width(self.image_px)
        return (height // 32, width // 32)


@settings
class ConvNetConfig:
    """A small residual network of 3x3 convolutions (He et al. 2016), which learns faster from small datasets."""

    kind: Literal["convnet"] = "convnet"
    """Distinguishes the kinds of image towers in a config file."""
    image_px: Pixels = 112
    """Input size in pixels: the side of a square, or height and width; a multiple of `stride`."""
    stem_stride: Literal[1, 2, 4] = 4
    """Downsampling factor of the stem: 4 for photos, 1 or 2 for images of 32 pixels."""
    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of each stage. All stages except the first halve the size of the feature map."""
    layers: tuple[int, ...] = (1, 1, 1)
    """Number of blocks of each stage."""

    def __post_init__(self) -> None:
        write_squares_as_one_number(self, "image_px")
        if not self.widths or len(self.widths) != len(self.layers):
            raise ConfigError(
                f"model.image: widths {self.widths} and layers {self.layers} must have the same number of stages, at least one"
            )
        check_at_most("the number of stages in model.image.widths", len(self.widths), MAX_STAGES)
        check_at_most("model.image.widths", max(self.widths), MAX_WIDTH)
        check_at_most("model.image.layers", max(self.layers), MAX_LAYERS)
        check_image_px(self.image_px)
        if min(*self.widths, *self.layers) < 1 or self.widths[0] % 2:
            raise ConfigError(
                f"model.image: widths {self.widths} and layers {self.layers} must be at least 1, the first width even"
            )
        if any(side < self.stride or side % self.stride for side in height_width(self.image_px)):
            raise ConfigError(
                f"model.image.image_px is {self.image_px}; this network needs a multiple of its stride {self.stride}"
            )

    @property
    def stride(self) -> int:
        """Ratio of the input size to the size of the last feature map."""
        return self.stem_stride << (len(self.widths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last stage's feature map."""
        height, width = height_width(self.image_px)
        return (height // self.stride, width // self.stride)


ImageConfig: TypeAlias = Annotated[ViTConfig | ResNetConfig | ConvNetConfig | TimmConfig, Field(discriminator="kind")]


def reads(image: ImageConfig, height: int, width: int) -> bool:
    """Whether a tower accepts images of this size in pixels.

    A tower with position embeddings accepts only its own size, a `ConvNetConfig` any multiple of its stride.

    >>> reads(ViTConfig(), 224, 224), reads(ViTConfig(), 256, 256), reads(ConvNetConfig(), 64, 96)
    (True, False, True)
    """
    if isinstance(image, ConvNetConfig):
        return min(height, width) >= image.stride and height % image.stride == width % image.stride == 0
    return (height, width) == height_width(image.image_px)


STAGED = (ResNetConfig, ConvNetConfig)
"""Image towers that consist of stages of convolutions with batch norms instead of transformer blocks."""


@settings
class TextConfig:
    """A text transformer and its tokenizer. The defaults (causal, end token pooled) follow Radford et al. 2021."""

    kind: ClassVar[str] = "text"
    """Name of this kind of tower in a config file, where it can be omitted."""
    tokenizer: TokenizerKind = "learned-bpe"
    """`clip-bpe` is CLIP's tokenizer; `learned-bpe` and `character` are built from the captions of the run; `hashing` has no
    vocabulary; `pretrained` and `sentencepiece` are read from another model's tokenizer file."""
    preparation: TextPreparation = field(default=TextPreparation(), repr=False)
    """How texts are prepared for a pretrained tokenizer; the other tokenizers ignore it."""
    vocab_size: int = 8192
    """Maximum vocabulary size for training; for a trained model, the actual size."""
    context_length: int = 77
    """Maximum number of tokens of a text, including start and end token."""
    width: int = 512
    """Width of a token; a multiple of `heads`."""
    layers: int = 12
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Ratio of the MLPs' hidden width to `width`."""
    activation: Activation = "gelu"
    """Activation function of the MLPs."""
    is_causal: bool = True
    """Whether a token attends only to earlier tokens, as in GPT; otherwise to all, as in BERT (Devlin et al. 2019)."""
    pooling: Literal["eot", "cls", "mean", "end", "appended"] = "eot"
    """How tokens are pooled: `eot` is the end token, `cls` the start token (needs `is_causal` false), `mean` the mean over all
    tokens. In SigLIP's layout, `eot` is the last position, and `end` is the token with the largest id, CLIP's end token
    (MobileCLIP). `appended` is a learned token after the context, which attends to the text (CoCa)."""
    layout: Literal["clip", "siglip"] = "clip"
    """`siglip` pads every text to the context length and attends to the padding; it has a bias in the projection and an
    epsilon of 1e-6 in its norms. Its `eot` is the last position of the context."""
    norm_eps: float | None = field(default=None, repr=False)
    """Epsilon of the layer norms; None for that of the layout."""
    has_projection_bias: bool | None = field(default=None, repr=False)
    """Whether the projection has a bias; None for the default of the layout."""
    has_projection: bool = field(default=True, repr=False)
    """Whether there is a projection; without one, the width must be `embed_dim`."""
    dropout: float = 0.0
    """Dropout probability after attention and MLP, within [0, 1)."""

    def __post_init__(self) -> None:
        check_transformer("model.text", self.width, self.layers, self.heads, self.mlp_ratio)
        check_share("model.text.dropout", self.dropout)
        if self.context_length < 3:
            raise ConfigError(
                f"model.text.context_length is {self.context_length}; a start token, an end token and one more need 3"
            )
        check_at_most("model.text.context_length", self.context_length, MAX_CONTEXT_LENGTH)
        if self.vocab_size < 1:
            raise ConfigError(f"model.text.vocab_size is {self.vocab_size}; it must be at least 1")
        check_at_most("model.text.vocab_size", self.vocab_size, MAX_VOCAB_SIZE)
        if self.tokenizer == "clip-bpe" and self.vocab_size != CLIP_VOCAB_SIZE:
            raise ConfigError(f"model.text.vocab_size is {self.vocab_size}; clip-bpe has {CLIP_VOCAB_SIZE} entries")
        check_norm_eps("model.text.norm_eps", self.norm_eps)
        self._check_pooling()

    def _check_pooling(self) -> None:
        if self.is_causal and self.pooling == "cls":
            raise ConfigError(
                "model.text.pooling is 'cls', but a causal start token attends only to itself; set is_causal to false"
            )
        if self.pooling == "end" and (self.layout != "siglip" or self.is_causal):
            raise ConfigError(
                "model.text.pooling is 'end', which needs a bidirectional tower in SigLIP's layout; use 'eot'"
            )
        if self.pooling == "appended" and (self.layout == "siglip" or not self.is_causal):
            raise ConfigError("model.text.pooling is 'appended', which needs a causal tower in CLIP's layout")

    @property
    def num_positions(self) -> int:
        """Number of position embeddings: the context length, and one more for an appended token."""
        return self.context_length + (self.pooling == "appended")

    @property
    def pad_id(self) -> int:
        """Id of the padding in SigLIP's layout: `preparation.pad_id`, or 0 for tokenizers that ignore the preparation."""
        return self.preparation.pad_id if self.tokenizer not in _WITHOUT_PREPARATION else 0


def _kind_of_text(value: Any) -> str:
    """Return the kind of a text tower. Configs of earlier versions do not contain it, because there was only one."""
    if isinstance(value, Mapping):
        return str(value.get("kind", TextConfig.kind))
    return str(getattr(value, "kind", TextConfig.kind))


def _without_kind(value: Any) -> Any:
    """Return the settings of a Diptych text tower without its kind, which is not a setting."""
    if isinstance(value, Mapping) and value.get("kind") == TextConfig.kind:
        return {name: content for name, content in value.items() if name != "kind"}
    return value


TextTowerConfig: TypeAlias = Annotated[
    Annotated[TextConfig, Tag("text")] | Annotated[TransformersConfig, Tag("transformers")],
    Discriminator(_kind_of_text),
    BeforeValidator(_without_kind),
]


@settings
class CLIPConfig:
    """Architecture of a CLIP model: two towers and their joint embedding space."""

    embed_dim: int = 512
    """Dimension of the embeddings."""
    image: ImageConfig = ViTConfig()
    """The image tower."""
    text: TextTowerConfig = TextConfig()
    """The text tower."""
    pixels: PixelConfig = PixelConfig()
    """How images are transformed into the input of the image tower."""
    init_temperature: float = 0.07
    """Initial temperature, within [0.01, 1]. It is learned and never falls below 0.01 (logit scale 100)."""
    init_logit_bias: float | None = None
    """Initial logit bias, which is learned (SigLIP: -10); None for a model without a bias."""

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise ConfigError(f"model.embed_dim is {self.embed_dim}; it must be at least 1")
        check_at_most("model.embed_dim", self.embed_dim, MAX_WIDTH)
        if self.init_logit_bias is not None and not math.isfinite(self.init_logit_bias):
            raise ConfigError(f"model.init_logit_bias is {self.init_logit_bias}; it must be a finite number")
        if not 0.01 <= self.init_temperature <= 1:
            raise ConfigError(f"model.init_temperature is {self.init_temperature}; it must lie within [0.01, 1]")
        check_resize_px(self.pixels, self.image.image_px)
        if isinstance(self.image, ViTConfig) and self.image.layout == "siglip" and self.embed_dim != self.image.width:
            raise ConfigError(
                f"model.embed_dim is {self.embed_dim}; SigLIP's image tower has no projection, so it must equal its width "
                f"{self.image.width}"
            )
        self._check_heads()

    def _check_heads(self) -> None:
        image, text = self.image, self.text
        if isinstance(text, TextConfig) and not text.has_projection and self.embed_dim != text.width:
            raise ConfigError(
                f"model.embed_dim is {self.embed_dim}; without a projection, it must be the text tower's width {text.width}"
            )
        if (
            isinstance(image, ViTConfig)
            and image.pooling == "coca"
            and self.embed_dim % (image.pool_heads or image.heads)
        ):
            raise ConfigError(
                f"model.embed_dim is {self.embed_dim}, not a multiple of the pooling's {image.pool_heads or image.heads} heads"
            )

    @property
    def own_text(self) -> TextConfig:
        """The config of the text tower. Use it only if the text tower is Diptych's own text transformer."""
        assert isinstance(self.text, TextConfig)
        return self.text
