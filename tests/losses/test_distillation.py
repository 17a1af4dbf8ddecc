"""Distillation against open_clip's and against double precision, plain and tiled. Shapes: N batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diptych.losses import tiles
from diptych.losses.distillation import distillation_loss, tiled_distillation_loss
from tests import peers
from tests.losses.makers import pairs, relative


def _in_double(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The definition over the whole matrices."""
    logits, taught = (scale * image @ text.T for image, text, scale in (student, teacher))
    both = zip((logits, logits.T), (taught, taught.T), strict=True)
    return (
        sum((-(there.softmax(1) * ours.log_softmax(1)).sum(1).mean() for ours, there in both), logits.new_zeros(())) / 2
    )


def test_it_is_open_clips() -> None:
    student, teacher = pairs(50, 16), pairs(50, 24, likeness=0.4, seed=1)
    scale, teacher_scale = torch.tensor(12.0), torch.tensor(40.0)
    _, theirs = peers.open_clip.loss.DistillClipLoss()(*student, scale, *teacher, teacher_scale)
    for loss_of in (distillation_loss, tiled_distillation_loss):
        torch.testing.assert_close(loss_of(*student, scale, *teacher, teacher_scale), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("scale", "teacher_scale"), [(5.0, 20.0), (14.3, 100.0), (100.0, 20.0), (100.0, 100.0)])
def test_gradients_are_exact(scale: float, teacher_scale: float) -> None:
    """Sizes that fill no tile."""
    student = [*pairs(1300, 64, likeness=0.3), torch.tensor(scale)]
    teacher = [*pairs(1300, 48, likeness=0.2, seed=1), torch.tensor(teacher_scale)]
    doubles = [tensor.double().requires_grad_() for tensor in student]
    exact = _in_double(doubles, [tensor.double() for tensor in teacher])
    (3 * exact).backward()
    inputs = [tensor.clone().requires_grad_() for tensor in student]
    taught = [tensor.clone().requires_grad_() for tensor in teacher]
    loss = tiled_distillation_loss(inputs[0], inputs[1], inputs[2], taught[0], taught[1], taught[2])
    (3 * loss).backward()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=5e-6)
    for ours, double in zip(inputs, doubles, strict=True):
        assert double.grad is not None
        assert relative(ours.grad, double.grad) <= 5e-6
    assert all(tensor.grad is None for tensor in taught)


@given(num=st.integers(1, 40), scale=st.sampled_from([3.0, 29.0, 100.0]), seed=st.integers(0, 99))
def test_tiles_of_any_edge_equal_the_plain_loss(num: int, scale: float, seed: int) -> None:
    student, teacher = pairs(num, 3, seed=seed), pairs(num, 4, seed=seed + 1)
    before = tiles.TILE_ROWS, tiles.TILE_COLUMNS
    tiles.TILE_ROWS, tiles.TILE_COLUMNS = 4, 6
    grads = []
    try:
        for loss_of in (distillation_loss, tiled_distillation_loss):
            inputs = [tensor.clone().requires_grad_() for tensor in (*student, torch.tensor(scale))]
            taught = [tensor.clone().requires_grad_() for tensor in (*teacher, torch.tensor(20.0))]
            loss = loss_of(inputs[0], inputs[1], inputs[2], taught[0], taught[1], taught[2])
            loss.backward()
            assert all(tensor.grad is None for tensor in taught)
            grads.append([loss.detach(), *(tensor.grad for tensor in inputs)])
    finally:
        tiles.TILE_ROWS, tiles.TILE_COLUMNS = before
    for plain, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-5)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    image, text = (tensor.requires_grad_() for tensor in pairs(40, 8))
    scale = torch.tensor(20.0)
    tiled_distillation_loss(image, text, scale, image, text, scale).backward()
    for tensor in (image, text):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().max()) == 0.0
