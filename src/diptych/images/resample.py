"""Resize images with Pillow's filters, and resize only a part of an image with results that are bit-identical to Pillow's.

Shapes: L source pixels and K target pixels of one axis, M pixels of the other axis, T taps of a filter.
"""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from numpy import ndarray
from PIL import Image

Interpolation: TypeAlias = Literal["bicubic", "bilinear", "lanczos"]
"""Filter for resizing an image."""

FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's filters by name."""

_SUPPORT: dict[Interpolation, float] = {"bicubic": 2.0, "bilinear": 1.0, "lanczos": 3.0}
"""Radius of each filter, in pixels of the smaller of the two images."""
_MAX_EXCESS = 8
"""Only the crop is computed if the resized image would have more than this many times the pixels of the crop."""
_PRECISION_BITS = 22
"""Number of fraction bits in the integer weights of Pillow's filters."""


def resized_crop(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], interpolation: Interpolation
) -> Image.Image:
    """Return `image.resize(size).crop(box)`. If the crop is a small part of the resized image, the rest is not computed.

    Values are clipped between the two passes of a resize, so the order of the passes matters. The order is that of Pillow 13:
    horizontal first, unless the image loses more than twice as many rows as columns.

    Args:
        image: an RGB image.
        size: width and height of the resized image.
        box: left, upper, right and lower edge of the crop, within the resized image.
        interpolation: the filter.
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


def filter_matrix(source: int, target: int, interpolation: Interpolation) -> Float64[ndarray, "target source"]:
    """Return the matrix that resizes one axis from `source` to `target` pixels, with antialiasing. Its rows sum to 1.

    >>> filter_matrix(4, 2, "bilinear").round(3).tolist()
    [[0.429, 0.429, 0.143, 0.0], [0.0, 0.143, 0.429, 0.429]]
    """
    taps, weights = _filter_taps(source, target, 0, target, interpolation)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], np.minimum(taps, source - 1)), weights)
    return matrix


class _Axis:
    """One axis of a resize that computes only output pixels `low` to `high`, bit-identical to Pillow's `Resample.c`.

    `Image.resize(box=...)` is not exact, because it rounds the box to float32. That changes pixels of black and white noise.
    """

    def __init__(self, source: int, target: int, low: int, high: int, interpolation: Interpolation) -> None:
        self._is_same = source == target
        self._taps, weights = _filter_taps(source, target, low, high, interpolation)
        last = int(self._taps[-1, np.flatnonzero(self._taps[-1] < source)[-1]])
        self.start, self.end = (low, high) if self._is_same else (int(self._taps[0, 0]), last + 1)
        scaled = weights * 2**_PRECISION_BITS
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


def _filter_taps(
    source: int, target: int, low: int, high: int, interpolation: Interpolation
) -> tuple[Int64[ndarray, "K T"], Float64[ndarray, "K T"]]:
    """Return the source pixels of output pixels `low` to `high`, and their weights. Taps outside the filter have weight 0."""
    scale = source / target
    widening = max(scale, 1.0)
    support = _SUPPORT[interpolation] * widening
    centers = (np.arange(low, high) + 0.5) * scale
    starts = np.maximum(0, (centers - support + 0.5).astype(np.int64))
    ends = np.minimum(source, (centers + support + 0.5).astype(np.int64))
    taps = starts[:, None] + np.arange(int((ends - starts).max()))
    weights = _KERNELS[interpolation](np.abs(taps - centers[:, None] + 0.5) * (1.0 / widening))
    weights[taps >= ends[:, None]] = 0
    total = np.zeros(len(weights))
    for column in weights.T:  # Sum in Pillow's order: NumPy's pairwise sum would round differently.
        total += column
    return taps, weights / total[:, None]


def _bicubic(x: Float64[ndarray, "K T"]) -> Float64[ndarray, "K T"]:
    """Keys's cubic convolution kernel with a = -0.5 (Keys 1981), for distances `x` >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bilinear(x: Float64[ndarray, "K T"]) -> Float64[ndarray, "K T"]:
    return np.maximum(0.0, 1 - x)


def _lanczos(x: Float64[ndarray, "K T"]) -> Float64[ndarray, "K T"]:
    """The sinc function, windowed by its central lobe stretched to three pixels (Duchon 1979)."""
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS = {"bicubic": _bicubic, "bilinear": _bilinear, "lanczos": _lanczos}
