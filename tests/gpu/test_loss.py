"""The contrastive losses on a device: against float64 on the CPU, and without waiting."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diptych.data.batches.groups import connected_ids_on_device, positive_group_ids
from diptych.device import hardware
from diptych.device.distributed import ALONE
from diptych.losses import tiles
from diptych.losses.contrastive import clip_loss
from diptych.losses.distillation import tiled_distillation_loss
from diptych.losses.sigmoid import sigmoid_loss, tiled_sigmoid_loss
from diptych.losses.tiled import tiled_clip_loss
from tests.losses.makers import pairs, relative

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


def _inputs(device: torch.device, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    image, text = pairs(1300, 64)
    image, text, number = (tensor.to(device, dtype).requires_grad_() for tensor in (image, text, torch.tensor(scale)))
    return image, text, number


@pytest.mark.parametrize("side", [512, 8192])
@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("grouped", [False, True])
def test_tiles_and_the_plain_matrix_are_exact(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, side: int, scale: float, *, grouped: bool
) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(hardware, "HOST_DEVICES", frozenset[str]())
    monkeypatch.setattr(tiles, "_side", lambda _device: side)
    groups = torch.arange(1300) // 3 if grouped else None
    exact, ours = _inputs(CPU, torch.float64, scale), _inputs(device, torch.float32, scale)
    expected = clip_loss(*exact, groups)
    found = tiled_clip_loss(*ours, None if groups is None else groups.to(device))
    _check(found, expected, ours, exact)


@pytest.mark.cuda("on a CPU the host has nothing to wait for")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("side", [512, 8192])
def test_the_host_waits_for_no_loss(monkeypatch: pytest.MonkeyPatch, device: torch.device, side: int) -> None:
    """PyTorch raises where the host would wait for the device."""
    monkeypatch.setattr(tiles, "_side", lambda _device: side)
    inputs, bias = _inputs(device, torch.float32, 14.3), torch.tensor(-5.0).to(device)
    groups = (torch.arange(1300) // 3).to(device)
    teacher = *(emb.to(device) for emb in pairs(1300, 32, seed=1)), torch.tensor(30.0).to(device)
    keys = torch.arange(2600).view(1300, 2).to(device) // 3
    torch.cuda.set_sync_debug_mode("error")
    try:
        tiled_clip_loss(*inputs, groups).backward()
        tiled_sigmoid_loss(*inputs, bias, groups).backward()
        tiled_distillation_loss(*inputs, *teacher).backward()
        positive_group_ids(keys, ALONE)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_sigmoid_loss_is_exact(device: torch.device) -> None:
    groups = torch.arange(1300) // 3
    exact, ours = _inputs(CPU, torch.float64, 14.3), _inputs(device, torch.float32, 14.3)
    expected = sigmoid_loss(*exact, torch.tensor(-5.0).double(), groups)
    found = tiled_sigmoid_loss(*ours, torch.tensor(-5.0).to(device), groups.to(device))
    _check(found, expected, ours, exact)


@pytest.mark.parametrize("num", [1, 50, 3000])
def test_positive_groups_are_those_of_the_host(device: torch.device, num: int) -> None:
    keys = torch.randint(-num, num, (num, 2), generator=torch.Generator().manual_seed(0))
    assert connected_ids_on_device(keys.to(device)).tolist() == positive_group_ids(keys, ALONE).tolist()


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
