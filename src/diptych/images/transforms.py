"""Pictures to pixels of the model's size, exactly as evaluation wants them; `augment.py` does it for training.

Pixels stay uint8 until they are on the device; `normalize` makes floats of them there. Shapes: B batch, H W pixels.
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
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"model.pixels.std is {self.std}; each must be above 0")
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"model.pixels.mean is {self.mean}; each must be a finite number")


_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
"""Half the width of each filter, in pixels of the smaller of the two pictures."""
_MAX_EXCESS = 8
"""Above so many times the pixels of the crop, a picture is not resized as a whole."""
_PRECISION_BITS = 22
"""Of the weights of Pillow's filters, which are integers."""


def evaluation_pixels(image: Image.Image, *, image_px: Pixels, config: PixelConfig) -> UInt8[ndarray, "3 H W"]:
    """Scaled until it just covers the model's size, then its centre: OpenAI's evaluation transform (`clip.load`).

    For a square input that is: the short side becomes `image_px`, the long side is cut. Of a very long picture only the part
    that the result depends on is resized, so that time and memory do not grow with the aspect ratio.
    """
    height, width = height_width(image_px)
    scale = max(height / image.height, width / image.width)
    if height != width:  # As open_clip rounds.
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
    """`image.resize(size).crop(box)`; where the crop keeps little, without computing what it removes.

    Overshoots of the filter are clipped between the two passes of a resize, so their order shows. It is that of the whole
    resize in Pillow 13: horizontal first, unless the picture loses more than twice as many rows as columns.
    """
    if size[0] * size[1] <= _MAX_EXCESS * (box[2] - box[0]) * (box[3] - box[1]):
        return (image if size == image.size else image.resize(size, FILTERS[interpolation])).crop(box)
    across = _Axis(image.width, size[0], box[0], box[2], interpolation)
    down = _Axis(image.height, size[1], box[1], box[3], interpolation)
    part = np.asarray(image.crop((across.first, down.first, across.last, down.last)))
    if image.height - size[1] > 2 * max(0, image.width - size[0]):
        part = across.resample(down.resample(part).swapaxes(0, 1)).swapaxes(0, 1)
    else:
        part = down.resample(across.resample(part.swapaxes(0, 1)).swapaxes(0, 1))
    return Image.fromarray(np.ascontiguousarray(part))


class _Axis:
    """One axis of a resize of which pixels `low` to `high` are computed, bit for bit as Pillow's `Resample.c` does.

    `Image.resize(box=...)` would do, but rounds the box to float32, which shows in black and white noise.
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
        self.first, self.last = (low, high) if self._is_same else (int(starts[0]), int(ends[-1]))
        self._places = starts[:, None] + np.arange(int((ends - starts).max()))
        weights = _FILTERS[interpolation](np.abs(self._places - centers[:, None] + 0.5) * (1.0 / widening))
        weights[self._places >= ends[:, None]] = 0
        total = np.zeros(len(weights))
        for column in weights.T:  # In Pillow's order: a pairwise sum would round differently.
            total += column
        scaled = weights / total[:, None] * 2**_PRECISION_BITS
        self._weights = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)

    def resample(self, pixels: UInt8[ndarray, "L M 3"]) -> UInt8[ndarray, "K M 3"]:
        """The rows `low` to `high` of the resized picture, from its source's rows `first` to `last`."""
        if self._is_same:
            return pixels
        out = np.empty((len(self._weights), *pixels.shape[1:]), dtype=np.uint8)
        places = np.minimum(self._places, self.last - 1) - self.first
        for row, (weights, at) in enumerate(zip(self._weights, places, strict=True)):
            total = np.tensordot(weights, pixels[at].astype(np.int64), axes=1)
            out[row] = ((total + (1 << (_PRECISION_BITS - 1))) >> _PRECISION_BITS).clip(0, 255)
        return out


def _bicubic(x: Float64[ndarray, "K T"]) -> Float64[ndarray, "K T"]:
    """Keys's cubic convolution with a = -0.5, of distances of at least 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bilinear(x: Float64[ndarray, "K T"]) -> Float64[ndarray, "K T"]:
    return np.maximum(0.0, 1 - x)


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}
