"""Image corruptions at five strengths. Shapes: H W pixels of the model's input.

The strengths of noise, blur and JPEG are those of ImageNet-C (Hendrycks & Dietterich 2019); the blur radius is scaled from
224 pixels to the size of the image. Brightness has the strengths of ImageNet-C, but is added to all RGB channels. Rotation is
not part of ImageNet-C.
"""

import io
from collections.abc import Callable
from hashlib import blake2b

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageFilter

from diptych.images.decode import decode_array

STRENGTHS = (1, 2, 3, 4, 5)
"""Valid strengths; 1 is the weakest."""
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
_BLUR_SIGMA = (1.0, 2.0, 3.0, 4.0, 6.0)
_NOISE_STD = (0.08, 0.12, 0.18, 0.26, 0.38)
_JPEG_QUALITY = (25, 18, 15, 10, 7)
_DEGREES = (5.0, 10.0, 15.0, 30.0, 45.0)


def brighten(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Return the pixels with a constant added to every channel, clipped to 255."""
    brighter = pixels.astype(np.float32) + 255 * _BRIGHTNESS[strength - 1]
    return _bytes(brighter)


def blur(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Return the pixels after a Gaussian blur; its standard deviation is proportional to the shorter side of the image."""
    sigma = _BLUR_SIGMA[strength - 1] * min(pixels.shape[:2]) / 224
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))).copy()


def add_noise(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Return the pixels with Gaussian noise added. The seed is a hash of the pixels, so equal images get equal noise."""
    seed = int.from_bytes(blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
    return _bytes(pixels.astype(np.float32) + 255 * _NOISE_STD[strength - 1] * noise)


def compress(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Return the pixels after JPEG compression at low quality."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY[strength - 1])
    return decode_array(buffer.getvalue()).copy()


def rotate(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Return the pixels rotated about the center; corners outside the original image are black."""
    rotated = Image.fromarray(pixels).rotate(_DEGREES[strength - 1], Image.Resampling.BICUBIC)
    return np.asarray(rotated).copy()


DISTURBANCES: dict[str, Callable[[UInt8[ndarray, "H W 3"], int], UInt8[ndarray, "H W 3"]]] = {
    "brightness": brighten,
    "blur": blur,
    "noise": add_noise,
    "JPEG": compress,
    "rotation": rotate,
}


def _bytes(values: ndarray) -> UInt8[ndarray, "H W 3"]:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
