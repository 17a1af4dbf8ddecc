"""The evaluation transform: resize and center-crop an image to the model's input (`augment.py` has the training transform).

Pixels stay uint8 until they are on the device, where `normalize` converts them to floats.
Shapes: H and W are the height and width of the model's input.
"""

import math
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, UInt8
from numpy import ndarray
from PIL import Image

from diptych.core.errors import ConfigError
from diptych.core.settings import settings

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


FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@settings
class PixelConfig:
    """Settings of the image preprocessing; stored in the bundle."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    """Subtracted from each channel of pixels in [0, 1]."""
    std: tuple[float, float, float] = OPENAI_STD
    """Divides each channel after the mean is subtracted."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter for resizing."""
    crop_rounding: Literal["even", "down"] = "even"
    """Rounding of the center crop's offset if it lies between two pixels: to the `even` one, as in torchvision and OpenAI's
    CLIP, or `down`, as in Hugging Face's image processors."""

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"model.pixels.std is {self.std}; each must be above 0")
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"model.pixels.mean is {self.mean}; each must be a finite number")


_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
"""Half the width of each filter, in pixels of the smaller of the two images."""
_MAX_EXCESS = 8
"""If the resized image would have more than this many times the pixels of the crop, only the needed part is resized."""
_PRECISION_BITS = 22
"""Fraction bits of the integer weights of Pillow's filters."""


def evaluation_pixels(image: Image.Image, *, image_px: Pixels, config: PixelConfig) -> UInt8[ndarray, "3 H W"]:
    """Return the image resized to cover the model's input, then center-cropped: OpenAI's evaluation transform (`clip.load`).

    For a square input, the short side is resized to `image_px` and the long side is cropped. For images with an extreme aspect
    ratio, only the part inside the crop is resized, so that time and memory do not grow with the aspect ratio.

    >>> evaluation_pixels(Image.new("RGB", (64, 48)), image_px=32, config=PixelConfig()).shape
    (3, 32, 32)
    """
    height, width = height_width(image_px)
    scale = max(height / image.height, width / image.width)
    if height != width:  # Round as open_clip does.
        size = (round(image.width * scale), round(image.height * scale))
    elif image.width <= image.height:
        size = (width, width * image.height // image.width)
    else:
        size = (height * image.width // image.height, height)
    rounded = round if config.crop_rounding == "even" else math.floor
    left, upper = rounded((size[0] - width) / 2), rounded((size[1] - height) / 2)
    cropped = _resized_crop(image, size, (left, upper, left + width, upper + height), config.interpolation)
    return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1))


def _resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    interpolation: Literal["bicubic", "bilinear"],
) -> Image.Image:
    """Return `image.resize(size).crop(box)`; if the crop is a small part, the rest is not computed.

    The result is clipped between the two passes of a resize, so the order of the passes matters. The order is that of a whole
    resize in Pillow 13: horizontal first, unless the image loses more than twice as many rows as columns.
    """
    if size[0] * size[1] <= _MAX_EXCESS * (box[2] - box[0]) * (box[3] - box[1]):
        return (image if size == image.size else image.resize(size, FILTERS[interpolation])).crop(box)
    horizontal = _Axis(image.width, size[0], box[0], box[2], interpolation)
    vertical = _Axis(image.height, size[1], box[1], box[3], interpolation)
    part = np.asarray(image.crop((horizontal.start, vertical.start, horizontal.end, vertical.end)))
    if image.height - size[1] > 2 * max(0, image.width - size[0]):
        part = horizontal.resample(vertical.resample(part).swapaxes(0, 1)).swapaxes(0, 1)
    else:
        part = vertical.resample(horizontal.resample(part.swapaxes(0, 1)).swapaxes(0, 1))
    return Image.fromarray(np.ascontiguousarray(part))


class _Axis:
    """One axis of a resize that computes only output pixels `low` to `high`, bit for bit as Pillow's `Resample.c`.

    `Image.resize(box=...)` is not exact: it rounds the box to float32, which changes pixels of black and white noise.
    """

    def __init__(
        self, source: int, target: int, low: int, high: int, interpolation: Literal["bicubic", "bilinear"]
    ) -> None:
        self._is_same = source == target
        scale = source / target
        widening = max(scale, 1.0)
        support = _SUPPORT[interpolation] * widening
        centers = (np.arange(low, high) + 0.5) * scale
        starts = np.maximum(0, (centers - support + 0.5).astype(np.int64))
        ends = np.minimum(source, (centers + support + 0.5).astype(np.int64))
        self.start, self.end = (low, high) if self._is_same else (int(starts[0]), int(ends[-1]))
        self._taps = starts[:, None] + np.arange(int((ends - starts).max()))
        weights = _FILTERS[interpolation](np.abs(self._taps - centers[:, None] + 0.5) * (1.0 / widening))
        weights[self._taps >= ends[:, None]] = 0
        total = np.zeros(len(weights))
        for column in weights.T:  # Sum in Pillow's order: NumPy's pairwise sum would round differently.
            total += column
        scaled = weights / total[:, None] * 2**_PRECISION_BITS
        self._weights = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)

    def resample(self, pixels: UInt8[ndarray, "L M 3"]) -> UInt8[ndarray, "K M 3"]:
        """Return rows `low` to `high` of the resized image, given rows `start` to `end` of its source."""
        if self._is_same:
            return pixels
        out = np.empty((len(self._weights), *pixels.shape[1:]), dtype=np.uint8)
        taps = np.minimum(self._taps, self.end - 1) - self.start
        for row, (weights, rows) in enumerate(zip(self._weights, taps, strict=True)):
            total = np.tensordot(weights, pixels[rows].astype(np.int64), axes=1)
            out[row] = ((total + (1 << (_PRECISION_BITS - 1))) >> _PRECISION_BITS).clip(0, 255)
        return out


def _bicubic(x: Float64[ndarray, "K T"]) -> Float64[ndarray, "K T"]:
    """Keys's cubic convolution kernel with a = -0.5 (Keys 1981), for distances `x` >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bilinear(x: Float64[ndarray, "K T"]) -> Float64[ndarray, "K T"]:
    return np.maximum(0.0, 1 - x)


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}
