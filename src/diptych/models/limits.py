"""Limits for the sizes in a model's config, and checks that several kinds of towers share."""

from diptych.core.errors import ConfigError
from diptych.images.transforms import PixelConfig, Pixels, height_width

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


def check_transformer(where: str, width: int, layers: int, heads: int, mlp_ratio: float) -> None:
    """Check the sizes of a transformer.

    Raises:
        ConfigError: a size is out of range, or the width is not a multiple of the heads.
    """
    if min(width, layers, heads) < 1:
        raise ConfigError(f"{where}: width {width}, layers {layers} and heads {heads} must be at least 1")
    check_at_most(f"{where}.width", width, MAX_WIDTH)
    check_at_most(f"{where}.layers", layers, MAX_LAYERS)
    if not 0 < mlp_ratio <= MAX_MLP_RATIO or width * mlp_ratio < 1:
        raise ConfigError(
            f"{where}.mlp_ratio is {mlp_ratio}; it must be above 0 and at most {MAX_MLP_RATIO}, and the hidden width at least 1"
        )
    if width % heads:
        raise ConfigError(f"{where}: width {width} is not a multiple of heads {heads}")


def check_at_most(name: str, value: int, largest: int) -> None:
    """Raise a ConfigError if a value is above its limit."""
    if value > largest:
        raise ConfigError(f"{name} is {value}; it must be at most {largest}")


def check_image_px(image_px: Pixels) -> None:
    """Raise a ConfigError if an image size is above its limit."""
    check_at_most("model.image.image_px", max(height_width(image_px)), MAX_IMAGE_PX)


def check_share(name: str, value: float) -> None:
    """Raise a ConfigError if a value does not lie within [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}; it must lie within [0, 1)")


def write_squares_as_one_number(config: object, *names: str) -> None:
    """Replace (224, 224) by 224, so that two configs of one model are equal."""
    for name in names:
        height, width = height_width(getattr(config, name))
        if height == width:
            object.__setattr__(config, name, height)  # The class is frozen.


def check_resize_px(pixels: PixelConfig, image_px: Pixels) -> None:
    """Check that the image is resized to at least the size of the input.

    Raises:
        ConfigError: `resize_px` is smaller.
    """
    short = min(height_width(image_px))
    if pixels.resize_px is not None and pixels.resize_px < short:
        raise ConfigError(
            f"model.pixels.resize_px is {pixels.resize_px}; it must be at least {short}, the short side of the model's input"
        )


def check_norm_eps(name: str, value: float | None) -> None:
    """Check an epsilon of layer norms.

    Raises:
        ConfigError: it is not within (0, 1).
    """
    if value is not None and not 0 < value < 1:
        raise ConfigError(f"{name} is {value}; it must lie within (0, 1)")
