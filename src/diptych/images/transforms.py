"""Pictures to pixels of the model's size, exactly as evaluation wants them; `augment.py` does it for training.

Pixels stay uint8 until they are on the device; `normalize` makes floats of them there. Shapes: B batch, H W pixels.
"""

import math
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diptych.core.errors import ConfigError
from diptych.core.settings import settings

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Pixels: TypeAlias = int | tuple[int, int]
"""The side of a square, or height and width."""


def height_width(pixels: Pixels) -> tuple[int, int]:
    """Both sides.

    >>> height_width(224), height_width((224, 112))
    ((224, 224), (224, 112))

    Raises:
        ConfigError: it is neither a whole number nor two of them.
    """
    sides = (pixels, pixels) if isinstance(pixels, int) else pixels
    if not (isinstance(sides, tuple) and len(sides) == 2 and all(isinstance(side, int) for side in sides)):
        raise ConfigError(f"image_px is {pixels!r}; it is a whole number, or (height, width)")
    return sides


def size_name(pixels: Pixels) -> int | str:
    """How reports name a size.

    >>> size_name(224), size_name((224, 112))
    (224, '224x112')
    """
    return pixels if isinstance(pixels, int) else f"{pixels[0]}x{pixels[1]}"


FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@settings
class PixelConfig:
    """How pictures become the model's input; kept in the bundle."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    """Subtracted from each channel of pixels in [0, 1]."""
    std: tuple[float, float, float] = OPENAI_STD
    """Divides each channel after the mean is gone."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of every resize."""
    crop_rounding: Literal["even", "down"] = "even"
    """Which pixel the centre is when it lies between two: the even one, as torchvision and OpenAI have it, or the lower one,
    as Hugging Face's image processors do."""

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ConfigError(f"model.pixels.std is {self.std}; each must be above 0")


def evaluation_pixels(image: Image.Image, *, image_px: Pixels, config: PixelConfig) -> UInt8[ndarray, "3 H W"]:
    """Scaled until it just covers the model's size, then its centre: OpenAI's evaluation transform (`clip.load`).

    For a square input that is: the short side becomes `image_px`, the long side is cut.
    """
    height, width = height_width(image_px)
    scale = max(height / image.height, width / image.width)
    if height != width:  # As open_clip rounds.
        size = (round(image.width * scale), round(image.height * scale))
    elif image.width <= image.height:
        size = (width, width * image.height // image.width)
    else:
        size = (height * image.width // image.height, height)
    resized = image if size == image.size else image.resize(size, FILTERS[config.interpolation])
    rounded = round if config.crop_rounding == "even" else math.floor
    left, upper = rounded((size[0] - width) / 2), rounded((size[1] - height) / 2)
    cropped = resized.crop((left, upper, left + width, upper + height))
    return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1))


def shrink(pixels: UInt8[Tensor, "B 3 H W"], image_px: Pixels, *, config: PixelConfig) -> UInt8[Tensor, "B 3 H2 W2"]:
    """A batch at another size, by the filter of every resize, as sharp as that; on the device of the pixels."""
    size, is_on_cpu = height_width(image_px), pixels.device.type == "cpu"
    given = pixels if is_on_cpu else pixels.float()  # Only a CPU has it for bytes.
    small = functional.interpolate(given, size, mode=config.interpolation, antialias=True)
    return small if is_on_cpu else small.round().clamp(0, 255).to(torch.uint8)


def normalize(pixels: UInt8[Tensor, "B 3 H W"], config: PixelConfig) -> Float[Tensor, "B 3 H W"]:
    """Floats with the mean taken off and the deviation divided out, on the device of the pixels."""
    mean = torch.tensor(config.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(config.std, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std
