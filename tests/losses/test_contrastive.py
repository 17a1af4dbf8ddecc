"""Shapes: B batch, E embedding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from diptych.losses.contrastive import batch_accuracy, clip_loss
from tests.losses.makers import pairs

SCALE = torch.tensor(7.0)


def _slow(image: Tensor, text: Tensor, scale: float, groups: list[int]) -> float:
    """The definition, one number at a time, in double precision."""
    num = len(groups)
    logits = [[scale * sum(a * b for a, b in zip(x, y, strict=True)) for y in text.tolist()] for x in image.tolist()]
    total = 0.0
    for rows in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i, row in enumerate(rows):
            log_sum = math.log(sum(math.exp(value) for value in row))
            positives = [j for j in range(num) if groups[j] == groups[i]]
            total -= sum(row[j] - log_sum for j in positives) / len(positives)
    return total / (2 * num)


GROUPS = st.lists(st.integers(0, 3), min_size=2, max_size=9)


@given(groups=GROUPS, seed=st.integers(0, 50))
def test_equals_the_slow_twin(groups: list[int], seed: int) -> None:
    image, text = pairs(len(groups), 5, likeness=0, seed=seed)
    loss = clip_loss(image, text, SCALE, torch.tensor(groups)).item()
    assert loss == pytest.approx(_slow(image, text, 7.0, groups), abs=1e-5)


def test_without_groups_it_is_the_papers() -> None:
    image, text = pairs(6, 5, likeness=0)
    expected = _slow(image, text, 7.0, list(range(6)))
    assert clip_loss(image, text, SCALE).item() == pytest.approx(expected, abs=1e-5)
    ones = clip_loss(image, text, SCALE, torch.tensor([5, 3, 0, 1, 9, 2]))
    assert ones.item() == pytest.approx(expected, abs=1e-5)


@given(groups=GROUPS)
def test_symmetric_and_blind_to_order(groups: list[int]) -> None:
    image, text = pairs(len(groups), 5, likeness=0)
    group = torch.tensor(groups)
    loss = clip_loss(image, text, SCALE, group)
    torch.testing.assert_close(clip_loss(text, image, SCALE, group), loss, atol=1e-5, rtol=0)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))
    permuted = clip_loss(image[order], text[order], SCALE, group[order])
    torch.testing.assert_close(permuted, loss, atol=1e-5, rtol=0)


def test_a_model_that_knows_nothing_loses_ln_n() -> None:
    same = functional.normalize(torch.ones(8, 5), dim=1)
    assert clip_loss(same, same, SCALE).item() == pytest.approx(math.log(8), abs=1e-5)
    assert clip_loss(same, same, SCALE, torch.tensor([0, 0, 1, 1, 2, 3, 4, 4])).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 3, 3]])
def test_gradients_equal_double_precision(groups: list[int] | None) -> None:
    image, text = pairs(6, 5, likeness=0)
    group = None if groups is None else torch.tensor(groups)
    single = [tensor.clone().requires_grad_() for tensor in (image, text, SCALE)]
    clip_loss(single[0], single[1], single[2], group).backward()

    double = [tensor.double().requires_grad_() for tensor in (image, text, SCALE)]
    logits = double[2] * double[0] @ double[1].T
    marks = torch.arange(6) if group is None else group
    target = (marks[:, None] == marks[None]).double()
    target /= target.sum(1, keepdim=True)
    (-(target * logits.log_softmax(1)).sum() / 12 - (target * logits.T.log_softmax(1)).sum() / 12).backward()
    for ours, exact in zip(single, double, strict=True):
        assert ours.grad is not None
        assert exact.grad is not None
        torch.testing.assert_close(ours.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)


def test_batch_accuracy_by_hand() -> None:
    image = torch.eye(4)
    text = torch.eye(4)[[0, 2, 1, 3]]
    image_to_text, text_to_image = batch_accuracy(image, text, torch.arange(4))
    assert (image_to_text.item(), text_to_image.item()) == (0.5, 0.5)
    assert batch_accuracy(image, text, torch.tensor([0, 1, 1, 3]))[0].item() == 1.0


def test_batch_accuracy_knows_its_directions() -> None:
    image = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    image_to_text, text_to_image = batch_accuracy(image, text, torch.tensor([0, 1]))
    assert (image_to_text.item(), text_to_image.item()) == (0.5, 0.5)
    third = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # Cosines [[1, 0.6], [0.8, 0.96]]: all right.
    assert [share.item() for share in batch_accuracy(image, third, torch.tensor([0, 1]))] == [1.0, 1.0]
    fourth = torch.tensor(
        [[0.8, 0.6], [0.0, 1.0]]
    )  # Rows [[0.8, 0], [1, 0.6]]: the images take text 0, the texts image 1.
    lopsided = batch_accuracy(torch.cat([image, image[:1]]), torch.cat([fourth, fourth[:1]]), torch.tensor([0, 1, 0]))
    assert lopsided[0].item() == pytest.approx(2 / 3)
    assert lopsided[1].item() == pytest.approx(1 / 3)
