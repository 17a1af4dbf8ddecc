"""What happens to pictures in the world, at five strengths. Shapes: H W pixels of the model's input.

Strengths of noise, blur and JPEG are those of ImageNet-C (Hendrycks & Dietterich 2019), blur scaled from its 224 pixels to
the picture's; brightness is added as there, but to all channels; rotation is our own.
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
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
_BLUR_SIGMA = (1.0, 2.0, 3.0, 4.0, 6.0)
_NOISE_STD = (0.08, 0.12, 0.18, 0.26, 0.38)
_JPEG_QUALITY = (25, 18, 15, 10, 7)
_DEGREES = (5.0, 10.0, 15.0, 30.0, 45.0)


def brighten(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """More light in every channel, up to white."""
    added = pixels.astype(np.float32) + 255 * _BRIGHTNESS[strength - 1]
    return _bytes(added)


def blur(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Gaussian, with a deviation that grows with the picture."""
    sigma = _BLUR_SIGMA[strength - 1] * min(pixels.shape[:2]) / 224
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))).copy()


def add_noise(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Normal noise, the same for the same picture."""
    seed = int.from_bytes(blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
    return _bytes(pixels.astype(np.float32) + 255 * _NOISE_STD[strength - 1] * noise)


def compress(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Through a JPEG file of low quality."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY[strength - 1])
    return decode_array(buffer.getvalue()).copy()


def rotate(pixels: UInt8[ndarray, "H W 3"], strength: int) -> UInt8[ndarray, "H W 3"]:
    """Turned about its centre; corners that were not in the picture are black."""
    turned = Image.fromarray(pixels).rotate(_DEGREES[strength - 1], Image.Resampling.BICUBIC)
    return np.asarray(turned).copy()


DISTURBANCES: dict[str, Callable[[UInt8[ndarray, "H W 3"], int], UInt8[ndarray, "H W 3"]]] = {
    "brightness": brighten,
    "blur": blur,
    "noise": add_noise,
    "JPEG": compress,
    "rotation": rotate,
}


def _bytes(values: ndarray) -> UInt8[ndarray, "H W 3"]:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
