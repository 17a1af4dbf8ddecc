"""Batches of pixels as tensors, on the device of the model. Shapes: B batch, H W pixels."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from diptych.images.transforms import PixelConfig, Pixels, height_width


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
