"""The evaluation transform: resize an image to the shape of the model's input (`augment.py` has the training transform).

Pixels stay uint8 until they are on the device, where `normalize` converts them to floats.
Shapes: H and W are the height and width of the model's input.
"""

import math
from dataclasses import field
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.images.resample import Interpolation, resized_crop

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Pixels: TypeAlias = int | tuple[int, int]
"""The side of a square, or height and width."""


def height_width(pixels: Pixels) -> tuple[int, int]:
    """Return (height, width) of an image size.

    >>> height_width(224), height_width((224, 112))
    ((224, 224), (224, 112))

    Raises:
        ConfigError: the size is neither an integer nor a pair of integers.
    """
    sides = (pixels, pixels) if isinstance(pixels, int) else pixels
    if not (isinstance(sides, tuple) and len(sides) == 2 and all(isinstance(side, int) for side in sides)):
        raise ConfigError(f"image_px is {pixels!r}; it is a whole number, or (height, width)")
    return sides


def size_name(pixels: Pixels) -> int | str:
    """Return an image size as reports show it.

    >>> size_name(224), size_name((224, 112))
    (224, '224x112')
    """
    return pixels if isinstance(pixels, int) else f"{pixels[0]}x{pixels[1]}"


ResizeMode: TypeAlias = Literal["crop", "squash", "pad"]
"""How an image is fitted to the shape of the model's input."""
MAX_RESIZE_PX = 2**14
"""Maximum of `resize_px`."""


@settings
class PixelConfig:
    """Settings of the image preprocessing; stored in the bundle."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    """Subtracted from each channel of pixels in [0, 1]."""
    std: tuple[float, float, float] = OPENAI_STD
    """Divides each channel after the mean is subtracted."""
    interpolation: Interpolation = "bicubic"
    """Filter for resizing: `bicubic`, `bilinear` or `lanczos`, which is slower in training."""
    crop_rounding: Literal["even", "down"] = "even"
    """Rounding of the center crop's offset if it lies between two pixels: to the `even` one, as in torchvision and OpenAI's
    CLIP, or `down`, as in Hugging Face's image processors."""
    resize: ResizeMode = field(default="crop", repr=False)
    """How an image is fitted to the shape of the input. `crop`: resize to cover the input and crop the center. `squash`: resize
    to the input size, which changes the aspect ratio (SigLIP). `pad`: resize to fit into the input and add borders."""
    resize_px: int | None = field(default=None, repr=False)
    """Short side, in pixels, to which the image is resized before the center of the input size is cropped; at least the short
    side of the input. None for the input size."""
    pad_color: tuple[int, int, int] = field(default=(0, 0, 0), repr=False)
    """RGB color of the borders for `pad`; each value is within [0, 255]."""

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"model.pixels.std is {self.std}; each must be above 0")
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"model.pixels.mean is {self.mean}; each must be a finite number")
        if self.resize_px is not None and not 1 <= self.resize_px <= MAX_RESIZE_PX:
            raise ConfigError(f"model.pixels.resize_px is {self.resize_px}; it must lie within [1, {MAX_RESIZE_PX}]")
        if not all(0 <= value <= 255 for value in self.pad_color):
            raise ConfigError(f"model.pixels.pad_color is {self.pad_color}; each must lie within [0, 255]")


def evaluation_pixels(image: Image.Image, *, image_px: Pixels, config: PixelConfig) -> UInt8[ndarray, "3 H W"]:
    """Return the image in the shape of the model's input; by default OpenAI's evaluation transform (`clip.load`).

    With `crop`, the image is resized to cover the input and center-cropped: for a square input, the short side is resized to
    `image_px` and the long side is cropped. `squash` and `pad` keep the whole image. Only the part inside the input is resized
    if the image has an extreme aspect ratio, so that time and memory do not grow with the aspect ratio.

    >>> evaluation_pixels(Image.new("RGB", (64, 48)), image_px=32, config=PixelConfig()).shape
    (3, 32, 32)
    """
    height, width = height_width(image_px)
    columns, rows = resized_size(image.width, image.height, image_px=image_px, config=config)
    left, upper = (_offset(*sides, config) for sides in ((columns, width), (rows, height)))
    inside = (max(left, 0), max(upper, 0), min(left + width, columns), min(upper + height, rows))
    resized = resized_crop(image, (columns, rows), inside, config.interpolation)
    if resized.size != (width, height):
        canvas = Image.new("RGB", (width, height), config.pad_color)
        canvas.paste(resized, (max(-left, 0), max(-upper, 0)))
        resized = canvas
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def resized_size(width: int, height: int, *, image_px: Pixels, config: PixelConfig) -> tuple[int, int]:
    """Return (width, height) of an image after the resize of the evaluation transform, before crop or borders.

    Sizes are rounded as in torchvision's `Resize` for a square input, and otherwise as in `ResizeKeepRatio` of open_clip and
    timm.

    >>> resized_size(64, 48, image_px=32, config=PixelConfig())
    (42, 32)
    >>> resized_size(64, 48, image_px=32, config=PixelConfig(resize="pad"))
    (32, 24)
    """
    rows, columns = _target(image_px, config)
    if config.resize == "squash":
        return columns, rows
    if config.resize == "pad":
        ratio = max(height / rows, width / columns)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if rows != columns:
        ratio = min(height / rows, width / columns)
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return columns, columns * height // width
    return rows * width // height, rows


def transform_name(config: PixelConfig) -> str:
    """Return the transform in a few words, for reports.

    >>> transform_name(PixelConfig()), transform_name(PixelConfig(resize="squash"))
    ('bicubic short side, centre crop', 'bicubic to the shape of the input')
    """
    names = {"crop": "short side, centre crop", "squash": "to the shape of the input", "pad": "long side, borders"}
    larger = "" if config.resize_px is None else f", of {config.resize_px} px"
    return f"{config.interpolation} {names[config.resize]}{larger}"


def _target(image_px: Pixels, config: PixelConfig) -> tuple[int, int]:
    """Return the target height and width of the resize, before crop or borders."""
    height, width = height_width(image_px)
    if config.resize_px is None:
        return height, width
    short = min(height, width)
    return height * config.resize_px // short, width * config.resize_px // short


def _offset(resized: int, target: int, config: PixelConfig) -> int:
    """Return the offset of the input in the resized image; negative if borders are added."""
    if resized < target:
        return -((target - resized) // 2)
    return (round if config.crop_rounding == "even" else math.floor)((resized - target) / 2)
