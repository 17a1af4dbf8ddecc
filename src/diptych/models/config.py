"""What a CLIP is made of: one frozen dataclass a tower, and one that joins them."""

from typing import Literal, TypeAlias

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.images.transforms import PixelConfig
from diptych.tokenizers.choice import TokenizerKind

Activation: TypeAlias = Literal["gelu", "quick_gelu"]
"""`quick_gelu` is x * sigmoid(1.702 x), which OpenAI's weights were trained with."""


def _check_transformer(where: str, width: int, layers: int, heads: int, mlp_ratio: float) -> None:
    if min(width, layers, heads) < 1:
        raise ConfigError(f"{where}: width {width}, layers {layers} and heads {heads} must be at least 1")
    if mlp_ratio <= 0:
        raise ConfigError(f"{where}.mlp_ratio is {mlp_ratio}; it must be above 0")
    if width % heads:
        raise ConfigError(f"{where}: width {width} is no multiple of heads {heads}")


@settings
class ViTConfig:
    """A vision transformer (Dosovitskiy et al. 2021, with CLIP's extra layer norm before the first block)."""

    image_px: int = 224
    """Side of the square input, in pixels."""
    patch_px: int = 32
    """Side of a patch, in pixels; divides `image_px`."""
    stem: Literal["patch", "conv"] = "patch"
    """How patches become tokens: one linear map each, as in the paper, or strided 3x3 convolutions, which learn faster from
    little data (Xiao et al. 2021)."""
    width: int = 768
    """Numbers a token, a multiple of `heads`."""
    layers: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads a block."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over `width`."""
    activation: Activation = "gelu"
    """Non-linearity of the MLPs."""
    pooling: Literal["cls", "mean"] = "cls"
    """What stands for the picture: the class token, or the mean over the patches."""

    def __post_init__(self) -> None:
        _check_transformer("model.image", self.width, self.layers, self.heads, self.mlp_ratio)
        if self.patch_px < 1 or self.image_px % self.patch_px:
            raise ConfigError(f"model.image.image_px is {self.image_px}, no multiple of patch_px {self.patch_px}")
        if self.stem == "conv" and self.patch_px & (self.patch_px - 1):
            raise ConfigError(
                f"model.image.patch_px is {self.patch_px}; a convolutional stem halves, so it needs a power of 2"
            )

    @property
    def num_patches(self) -> int:
        """Patches of one picture."""
        return (self.image_px // self.patch_px) ** 2


@settings
class TextConfig:
    """A causal text transformer whose end mark stands for the text (Radford et al. 2021, sec. 2.4), and its tokenizer."""

    tokenizer: TokenizerKind = "learned-bpe"
    """`learned-bpe` and `character` are made from the run's own captions."""
    vocab_size: int = 8192
    """The most entries the tokenizer may have; of a trained model, the entries it has."""
    context_length: int = 77
    """The most tokens of a text, both marks included."""
    width: int = 512
    """Numbers a token, a multiple of `heads`."""
    layers: int = 12
    """Transformer blocks."""
    heads: int = 8
    """Attention heads a block."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over `width`."""
    activation: Activation = "gelu"
    """Non-linearity of the MLPs."""

    def __post_init__(self) -> None:
        _check_transformer("model.text", self.width, self.layers, self.heads, self.mlp_ratio)
        if self.context_length < 3:
            raise ConfigError(f"model.text.context_length is {self.context_length}; two marks and a token need 3")


@settings
class CLIPConfig:
    """Two towers and the space that joins them."""

    embed_dim: int = 512
    """Numbers an embedding."""
    image: ViTConfig = ViTConfig()
    """The image tower."""
    text: TextConfig = TextConfig()
    """The text tower."""
    pixels: PixelConfig = PixelConfig()
    """How pictures become its input."""
    init_temperature: float = 0.07
    """Temperature at the start; it is learned, and never below 0.01 (logit scale 100)."""

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise ConfigError(f"model.embed_dim is {self.embed_dim}; it must be at least 1")
        if not 0.01 <= self.init_temperature <= 1:
            raise ConfigError(f"model.init_temperature is {self.init_temperature}; it must lie within [0.01, 1]")
