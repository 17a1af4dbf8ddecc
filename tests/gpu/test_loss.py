"""The contrastive losses on a GPU: against float64 on the CPU, and without waiting."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diptych.losses import tiles
from diptych.losses.contrastive import clip_loss
from diptych.losses.sigmoid import sigmoid_loss, tiled_sigmoid_loss
from diptych.losses.tiled import tiled_clip_loss
from tests.losses.makers import pairs, relative

pytestmark = pytest.mark.gpu


def _inputs(device: str, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    image, text = pairs(1300, 64)
    image, text, number = (tensor.to(device, dtype).requires_grad_() for tensor in (image, text, torch.tensor(scale)))
    return image, text, number


@pytest.mark.parametrize("side", [512, 8192])
@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("grouped", [False, True])
def test_tiles_and_the_plain_matrix_are_exact(
    monkeypatch: pytest.MonkeyPatch, side: int, scale: float, *, grouped: bool
) -> None:
    monkeypatch.setattr(tiles, "_side", lambda _device: side)
    groups = torch.arange(1300) // 3 if grouped else None
    exact, ours = _inputs("cpu", torch.float64, scale), _inputs("cuda", torch.float32, scale)
    expected = clip_loss(*exact, groups)
    found = tiled_clip_loss(*ours, None if groups is None else groups.cuda())
    _check(found, expected, ours, exact)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_host_waits_for_no_loss_of_one_tile() -> None:
    """PyTorch raises where the host would wait for the device."""
    inputs, bias = _inputs("cuda", torch.float32, 14.3), torch.tensor(-5.0).cuda()
    groups = (torch.arange(1300) // 3).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tiled_clip_loss(*inputs, groups).backward()
        tiled_sigmoid_loss(*inputs, bias, groups).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_sigmoid_loss_is_exact() -> None:
    groups = torch.arange(1300) // 3
    exact, ours = _inputs("cpu", torch.float64, 14.3), _inputs("cuda", torch.float32, 14.3)
    expected = sigmoid_loss(*exact, torch.tensor(-5.0).double(), groups)
    found = tiled_sigmoid_loss(*ours, torch.tensor(-5.0).cuda(), groups.cuda())
    _check(found, expected, ours, exact)


def _check(
    found: torch.Tensor, expected: torch.Tensor, ours: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]
) -> None:
    """Compare a loss and its gradients with those in float64."""
    expected.backward()
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=5e-6)
    for tensor, reference in zip(ours, exact, strict=True):
        assert tensor.grad is not None
        assert reference.grad is not None
        assert relative(tensor.grad.cpu(), reference.grad) <= 2e-5
