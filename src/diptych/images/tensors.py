"""Operations on batches of pixels as tensors, on the device of the model. Shapes: B batch, H height, W width."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from diptych.images.resample import Interpolation, filter_matrix
from diptych.images.transforms import PixelConfig, Pixels, height_width


def shrink(pixels: UInt8[Tensor, "B 3 H W"], image_px: Pixels, *, config: PixelConfig) -> UInt8[Tensor, "B 3 H2 W2"]:
    """Return the batch resized to `image_px` with antialiasing and the filter of the config, on the device of the pixels."""
    size, is_on_cpu = height_width(image_px), pixels.device.type == "cpu"
    if config.interpolation == "lanczos":
        return _shrink_by_matrices(pixels, size, config.interpolation)
    source = pixels if is_on_cpu else pixels.float()  # Only the CPU kernel supports bytes.
    small = functional.interpolate(source, size, mode=config.interpolation, antialias=True)
    return small if is_on_cpu else small.round().clamp(0, 255).to(torch.uint8)


def _shrink_by_matrices(
    pixels: UInt8[Tensor, "B 3 H W"], size: tuple[int, int], interpolation: Interpolation
) -> UInt8[Tensor, "B 3 H2 W2"]:
    """`shrink` for a filter that PyTorch does not have: multiply each axis by the matrix of the filter."""
    down, across = (
        torch.from_numpy(filter_matrix(source, target, interpolation)).float().to(pixels.device)
        for source, target in zip(pixels.shape[2:], size, strict=True)
    )
    narrow = (pixels.float() @ across.T).round().clamp(0, 255)  # Pillow also rounds between the two passes.
    return (down @ narrow).round().clamp(0, 255).to(torch.uint8)


def normalize(pixels: UInt8[Tensor, "B 3 H W"], config: PixelConfig) -> Float[Tensor, "B 3 H W"]:
    """Return `(pixels / 255 - mean) / std` in float32, on the device of the pixels."""
    mean, std = (_channels(values, pixels.device) for values in (config.mean, config.std))
    return (pixels.float() / 255 - mean) / std


def _channels(values: Sequence[float], device: torch.device) -> Float[Tensor, "1 3 1 1"]:
    """One number per channel. The device itself fills the tensor: a copy from the host would wait for its queue of kernels."""
    return torch.cat([torch.full((1, 1, 1, 1), value, device=device) for value in values], dim=1)
