"""Embeddings for tests of losses, and a simulated GPU. Shapes: N batch, E embedding."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diptych.device import hardware
from diptych.losses import tiles


def pairs(num: int, dim: int, *, likeness: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Image and text embeddings (N, E) of unit length. A larger `likeness` makes the two of a pair more similar."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, num, dim, generator=generator).unbind()
    return functional.normalize(image, dim=1), functional.normalize(likeness * image + text, dim=1)


def relative(ours: Tensor | None, exact: Tensor) -> float:
    """Norm of the difference, relative to the norm of the exact tensor."""
    assert ours is not None
    return float((ours.double() - exact).norm() / exact.norm())


@contextmanager
def as_on_a_gpu(side: int) -> Iterator[None]:
    """Within the block, losses treat the CPU as a GPU with tiles of this side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "HOST_DEVICES", frozenset[str]())
        patch.setattr(tiles, "_side", lambda _device: side)
        yield
