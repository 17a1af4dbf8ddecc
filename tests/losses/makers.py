"""Embeddings for losses, and a device that is not the CPU. Shapes: N batch, E embedding."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diptych.losses import tiles


def pairs(num: int, dim: int, *, likeness: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit embeddings; the larger the likeness, the nearer each pair."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, num, dim, generator=generator).unbind()
    return functional.normalize(image, dim=1), functional.normalize(likeness * image + text, dim=1)


def relative(ours: Tensor | None, exact: Tensor) -> float:
    """Length of the difference, relative to that of the exact tensor."""
    assert ours is not None
    return float((ours.double() - exact).norm() / exact.norm())


@contextmanager
def as_on_a_gpu(side: int) -> Iterator[None]:
    """The CPU taken for a device with tiles of this side, whose numbers the host does not read at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "HOST_DEVICES", frozenset[str]())
        patch.setattr(tiles, "_side", lambda _device: side)
        yield
