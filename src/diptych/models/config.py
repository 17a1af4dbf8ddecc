"""Architecture of a CLIP model: one config per kind of tower, and `CLIPConfig` for the whole model."""

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.images.transforms import PixelConfig, Pixels, height_width
from diptych.tokenizers.clip_bpe import VOCAB_SIZE as CLIP_VOCAB_SIZE
from diptych.tokenizers.load_tokenizer import TokenizerKind

Activation: TypeAlias = Literal["gelu", "quick_gelu", "gelu_tanh"]
"""`quick_gelu` is x * sigmoid(1.702 x), which OpenAI's weights need; `gelu_tanh` is the tanh approximation that SigLIP uses."""

MAX_LAYERS = 256
"""Maximum number of blocks of a tower or a stage. The largest published CLIP, EVA-CLIP-18B, has 48 blocks of width 5120."""
MAX_STAGES = 16
"""Maximum number of stages of a convolutional network."""
MAX_WIDTH = 32_768
"""Maximum width, number of channels and embedding dimension."""
MAX_MLP_RATIO = 64
"""Maximum ratio of an MLP's hidden width to the width."""
MAX_VOCAB_SIZE = 2**24
"""Maximum vocabulary size."""
MAX_CONTEXT_LENGTH = 2**16
"""Maximum context length in tokens."""
MAX_IMAGE_PX = 4096
"""Maximum height and width of an image in pixels."""


def _check_transformer(where: str, width: int, layers: int, heads: int, mlp_ratio: float) -> None:
    if min(width, layers, heads) < 1:
        raise ConfigError(f"{where}: width {width}, layers {layers} and heads {heads} must be at least 1")
    _check_at_most(f"{where}.width", width, MAX_WIDTH)
    _check_at_most(f"{where}.layers", layers, MAX_LAYERS)
    if not 0 < mlp_ratio <= MAX_MLP_RATIO or width * mlp_ratio < 1:
        raise ConfigError(
            f"{where}.mlp_ratio is {mlp_ratio}; it must be above 0 and at most {MAX_MLP_RATIO}, and the hidden width at least 1"
        )
    if width % heads:
        raise ConfigError(f"{where}: width {width} is not a multiple of heads {heads}")


def _check_at_most(name: str, value: int, largest: int) -> None:
    if value > largest:
        raise ConfigError(f"{name} is {value}; it must be at most {largest}")


def _check_image_px(image_px: Pixels) -> None:
    _check_at_most("model.image.image_px", max(height_width(image_px)), MAX_IMAGE_PX)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}; it must lie within [0, 1)")


def _write_squares_as_one_number(config: object, *names: str) -> None:
    """Replace (224, 224) by 224, so that two configs of one model are equal."""
    for name in names:
        height, width = height_width(getattr(config, name))
        if height == width:
            object.__setattr__(config, name, height)  # The class is frozen.


@settings
class ViTConfig:
    """A vision transformer (Dosovitskiy et al. 2021), with CLIP's additional layer norm before the first block."""

    kind: Literal["vit"] = "vit"
    """Distinguishes the kinds of image towers in a config file."""
    image_px: Pixels = 224
    """Input size in pixels: the side of a square, or height and width."""
    patch_px: Pixels = 32
    """Patch size in pixels: the side of a square, or height and width; divides `image_px`."""
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
    pooling: Literal["cls", "mean", "attention"] = "cls"
    """How tokens are pooled: class token, mean over the patches, or attention with one learned query (SigLIP; Zhai et al.
    2022)."""
    layout: Literal["clip", "siglip"] = "clip"
    """`siglip` has no class token, no norm before the first block, a bias in the patch embedding, no projection, and an
    epsilon of 1e-6 in its norms."""
    patch_dropout: float = 0.0
    """Share of the patches that are dropped in training (FLIP, Li et al. 2023), within [0, 1)."""
    dropout: float = 0.0
    """Dropout probability after attention and MLP (Vaswani et al. 2017, sec. 5.4), within [0, 1)."""

    def __post_init__(self) -> None:
        _check_transformer("model.image", self.width, self.layers, self.heads, self.mlp_ratio)
        _check_image_px(self.image_px)
        _write_squares_as_one_number(self, "image_px", "patch_px")
        height, width = height_width(self.patch_px)
        sides = zip(height_width(self.image_px), (height, width), strict=True)
        if min(height, width) < 1 or any(image < patch or image % patch for image, patch in sides):
            raise ConfigError(f"model.image.image_px is {self.image_px}, not a multiple of patch_px {self.patch_px}")
        if self.stem == "conv" and (height != width or height & (height - 1)):
            raise ConfigError(
                f"model.image.patch_px is {self.patch_px}; a convolutional stem halves the size, so it needs a power of 2"
            )
        _check_share("model.image.patch_dropout", self.patch_dropout)
        _check_share("model.image.dropout", self.dropout)
        if self.layout == "siglip" and self.pooling == "cls":
            raise ConfigError("model.image.pooling is 'cls', but SigLIP's layout has no class token; use 'attention'")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_height, patch_width) = height_width(self.image_px), height_width(self.patch_px)
        return (height // max(patch_height, 1), width // max(patch_width, 1))

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
        _write_squares_as_one_number(self, "image_px")
        if min(self.layers) < 1 or self.heads < 1 or self.width < 2 or self.width % 2:
            raise ConfigError(
                f"model.image: layers {self.layers} and heads {self.heads} must be at least 1, width {self.width} even"
            )
        _check_at_most("model.image.width", self.width, MAX_WIDTH // 32)
        _check_at_most("model.image.layers", max(self.layers), MAX_LAYERS)
        _check_image_px(self.image_px)
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
        _write_squares_as_one_number(self, "image_px")
        if not self.widths or len(self.widths) != len(self.layers):
            raise ConfigError(
                f"model.image: widths {self.widths} and layers {self.layers} must have the same number of stages, at least one"
            )
        _check_at_most("the number of stages in model.image.widths", len(self.widths), MAX_STAGES)
        _check_at_most("model.image.widths", max(self.widths), MAX_WIDTH)
        _check_at_most("model.image.layers", max(self.layers), MAX_LAYERS)
        _check_image_px(self.image_px)
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


ImageConfig: TypeAlias = Annotated[ViTConfig | ResNetConfig | ConvNetConfig, Field(discriminator="kind")]


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

    tokenizer: TokenizerKind = "learned-bpe"
    """`clip-bpe` is CLIP's tokenizer; `learned-bpe` and `character` are built from the captions of the run; `hashing` has no
    vocabulary."""
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
    pooling: Literal["eot", "cls", "mean"] = "eot"
    """How tokens are pooled: end token, start token (needs `is_causal` false), or the mean over all tokens."""
    layout: Literal["clip", "siglip"] = "clip"
    """`siglip` pads every text to the context length and attends to the padding; it has a bias in the projection and an
    epsilon of 1e-6 in its norms. Its `eot` is the last position of the context."""
    dropout: float = 0.0
    """Dropout probability after attention and MLP, within [0, 1)."""

    def __post_init__(self) -> None:
        _check_transformer("model.text", self.width, self.layers, self.heads, self.mlp_ratio)
        _check_share("model.text.dropout", self.dropout)
        if self.context_length < 3:
            raise ConfigError(
                f"model.text.context_length is {self.context_length}; a start token, an end token and one more need 3"
            )
        _check_at_most("model.text.context_length", self.context_length, MAX_CONTEXT_LENGTH)
        if self.vocab_size < 1:
            raise ConfigError(f"model.text.vocab_size is {self.vocab_size}; it must be at least 1")
        _check_at_most("model.text.vocab_size", self.vocab_size, MAX_VOCAB_SIZE)
        if self.tokenizer == "clip-bpe" and self.vocab_size != CLIP_VOCAB_SIZE:
            raise ConfigError(f"model.text.vocab_size is {self.vocab_size}; clip-bpe has {CLIP_VOCAB_SIZE} entries")
        if self.is_causal and self.pooling == "cls":
            raise ConfigError(
                "model.text.pooling is 'cls', but a causal start token attends only to itself; set is_causal to false"
            )


@settings
class CLIPConfig:
    """Architecture of a CLIP model: two towers and their joint embedding space."""

    embed_dim: int = 512
    """Dimension of the embeddings."""
    image: ImageConfig = ViTConfig()
    """The image tower."""
    text: TextConfig = TextConfig()
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
        _check_at_most("model.embed_dim", self.embed_dim, MAX_WIDTH)
        if self.init_logit_bias is not None and not math.isfinite(self.init_logit_bias):
            raise ConfigError(f"model.init_logit_bias is {self.init_logit_bias}; it must be a finite number")
        if not 0.01 <= self.init_temperature <= 1:
            raise ConfigError(f"model.init_temperature is {self.init_temperature}; it must lie within [0.01, 1]")
        if isinstance(self.image, ViTConfig) and self.image.layout == "siglip" and self.embed_dim != self.image.width:
            raise ConfigError(
                f"model.embed_dim is {self.embed_dim}; SigLIP's image tower has no projection, so it must equal its width "
                f"{self.image.width}"
            )
