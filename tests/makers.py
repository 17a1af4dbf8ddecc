"""Factories for tests of several packages: damaged files, models with random weights."""

from pathlib import Path

import torch

from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig


def flip_bit(path: Path, bit: int | None = None) -> None:
    """Flip one bit of a file, by default the lowest one of its middle byte."""
    content = bytearray(path.read_bytes())
    if bit is None:
        bit = 8 * (len(content) // 2)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def randomized(config: CLIPConfig, *, seed: int = 0) -> CLIP:
    """A model in evaluation mode in which no parameter or statistic keeps its initial value, such as 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    model = CLIP(config).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(0.5 + noise).add_((noise - 0.5).abs() * 0.2)
    return model
