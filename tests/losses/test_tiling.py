"""Tiles on devices other than the CPU: the choice of their size, what they give, and what the host reads of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.losses import tiles
from diptych.losses.contrastive import batch_accuracy, clip_loss
from diptych.losses.distillation import distillation_loss, tiled_distillation_loss
from diptych.losses.sigmoid import sigmoid_loss, tiled_sigmoid_loss
from diptych.losses.tiled import tiled_clip_loss
from tests.losses.makers import as_on_a_gpu, pairs

_READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
"""Operators whose result the host waits for, or whose result has a size that the host waits for."""


class CountReads(TorchDispatchMode):
    """Counts the operators for which the host would wait."""

    num = 0

    def __torch_dispatch__(
        self, func: Any, _types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.num += func._schema.name.removeprefix("aten::") in _READS
        return func(*args, **(kwargs or {}))


def _gradients(loss_of: Callable[..., Tensor], inputs: tuple[Tensor, ...], *args: object) -> list[Tensor]:
    """The loss and the gradients of three times it."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    loss = loss_of(*leaves, *args)
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]


@given(
    num=st.integers(1, 40),
    side=st.sampled_from([1, 4, 16, 64]),
    num_groups=st.sampled_from([None, 1, 9, 40]),
    scale=st.sampled_from([3.0, 29.0, 31.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_every_size_gives_the_plain_loss(
    *, num: int, side: int, num_groups: int | None, scale: float, seed: int
) -> None:
    inputs = *pairs(num, 3, seed=seed), torch.tensor(scale)
    generator = torch.Generator().manual_seed(seed)
    groups = None if num_groups is None else torch.randint(-9, num_groups, (num,), generator=generator)
    with_bias = *inputs, torch.tensor(-5.0)
    teacher = *pairs(num, 5, seed=seed + 100), torch.tensor(scale / 2)
    with as_on_a_gpu(side):
        clip, sigmoid = (
            _gradients(f, x, groups) for f, x in ((tiled_clip_loss, inputs), (tiled_sigmoid_loss, with_bias))
        )
        distilled = _gradients(tiled_distillation_loss, inputs, *teacher)
    for ours, plain in (
        (clip, _gradients(clip_loss, inputs, groups)),
        (distilled, _gradients(distillation_loss, inputs, *teacher)),
        (sigmoid, _gradients(sigmoid_loss, with_bias, groups)),
    ):
        for each, exact in zip(ours, plain, strict=True):
            torch.testing.assert_close(each, exact, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("side", [64, 32, 8])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_the_host_reads_no_number_however_many_tiles_there_are(scale: float, side: int, *, grouped: bool) -> None:
    image, text = pairs(64, 8)
    groups = torch.arange(64) // 3
    chosen = groups if grouped else None
    teacher = *pairs(64, 8, seed=1), torch.tensor(20.0)
    inputs, bias = (image, text, torch.tensor(scale)), torch.tensor(-5.0)
    with as_on_a_gpu(side), CountReads() as count:  # type: ignore[no-untyped-call]
        _gradients(tiled_clip_loss, inputs, chosen)
        _gradients(partial(tiled_clip_loss, label_smoothing=0.1), inputs, chosen)
        _gradients(tiled_sigmoid_loss, (*inputs, bias), chosen)
        _gradients(tiled_distillation_loss, inputs, *teacher)
        batch_accuracy(image, text, groups, max_rows=16)
    assert count.num == 0
    with count:
        image.sum().item()
    assert count.num == 1  # It counts.


@pytest.mark.parametrize("side", [1, 2, 3])
def test_logits_of_the_whole_range_are_exact(side: int) -> None:
    """Rows and columns whose largest logits are 100, 0, and -100 or just above it."""
    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    image, text = directions[[0, 0, 1, 2]], torch.stack([directions[0], -directions[1], -directions[2], -directions[0]])
    alone = -directions[:1].expand(3, 3), directions[:1].expand(3, 3)  # Each logit is -100.
    for images, texts in ((image, text), alone):
        exact = _gradients(clip_loss, tuple(x.double() for x in (images, texts, torch.tensor(100.0))))
        with as_on_a_gpu(side):
            ours = _gradients(tiled_clip_loss, (images, texts, torch.tensor(100.0)))
        for each, theirs in zip(ours, exact, strict=True):
            torch.testing.assert_close(each.double(), theirs, atol=1e-5, rtol=1e-5)


def test_a_matrix_that_fits_is_computed_plainly() -> None:
    inputs = *pairs(40, 8), torch.tensor(20.0)
    with as_on_a_gpu(64):
        ours = _gradients(tiled_clip_loss, inputs)
    for each, plain in zip(ours, _gradients(clip_loss, inputs), strict=True):
        assert torch.equal(each, plain)


@pytest.mark.parametrize(("gibibytes", "side"), [(1, 1024), (8, 4096), (16, 4096), (79, 8192), (141, 8192)])
def test_sides_follow_the_memory_of_the_card(monkeypatch: pytest.MonkeyPatch, gibibytes: int, side: int) -> None:
    class Card:
        total_memory = gibibytes * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Card)
    card = torch.device("cuda", gibibytes % 100)  # Each has a number of its own, as the size of a card is kept.
    assert tiles.tiling(card) == (side, side, False)
    assert tiles.tiling(torch.device("mps")) == (4096, 4096, False)


def test_a_cpu_has_small_tiles() -> None:
    assert tiles.tiling(torch.device("cpu")) == (512, 1024, True)
