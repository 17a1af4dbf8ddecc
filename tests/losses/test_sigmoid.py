"""The sigmoid loss against its definition, tiled against plain and against double precision. Shapes: N batch, E embedding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.losses import tiles
from diptych.losses.sigmoid import sigmoid_loss, tiled_sigmoid_loss
from tests import peers
from tests.losses.makers import pairs, relative


@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=7), seed=st.integers(0, 50))
def test_equals_the_definition(groups: list[int], seed: int) -> None:
    image, text = pairs(len(groups), 3, seed=seed)
    total = 0.0
    for i, x in enumerate(image.tolist()):
        for j, y in enumerate(text.tolist()):
            sign = 1 if groups[i] == groups[j] else -1
            logit = 7.0 * sum(a * b for a, b in zip(x, y, strict=True)) - 2.0
            total += math.log(1 + math.exp(-sign * logit))
    for loss_of in (sigmoid_loss, tiled_sigmoid_loss):
        loss = loss_of(image, text, torch.tensor(7.0), torch.tensor(-2.0), torch.tensor(groups))
        assert float(loss) == pytest.approx(total / len(groups), rel=1e-5, abs=2e-6)  # float32 of numbers near 5.


def test_without_groups_it_is_open_clips() -> None:
    image, text = pairs(50, 16)
    scale, bias = torch.tensor(12.0), torch.tensor(-9.0)
    theirs = peers.open_clip.loss.SigLipLoss()(image, text, scale, bias)
    for loss_of in (sigmoid_loss, tiled_sigmoid_loss):
        torch.testing.assert_close(loss_of(image, text, scale, bias), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("scale", "bias", "likeness"), [(10.0, -10.0, 0.1), (100.0, -10.0, 0.1), (110.0, -12.0, 0.9)])
def test_gradients_are_exact(scale: float, bias: float, likeness: float, *, grouped: bool) -> None:
    image, text = pairs(1300, 64, likeness=likeness)
    groups = torch.randint(0, 400, (1300,), generator=torch.Generator().manual_seed(1)) if grouped else None
    grads = []
    for loss_of, dtype in ((sigmoid_loss, torch.float64), (tiled_sigmoid_loss, torch.float32)):
        inputs = [x.to(dtype).requires_grad_() for x in (image, text, torch.tensor(scale), torch.tensor(bias))]
        loss = loss_of(inputs[0], inputs[1], inputs[2], inputs[3], groups)
        (3 * loss).backward()
        grads.append([loss.detach(), *(tensor.grad for tensor in inputs)])
    for exact, ours in zip(*grads, strict=True):
        assert exact is not None
        assert relative(ours, exact) <= 5e-6


@given(num=st.integers(1, 40), num_groups=st.integers(1, 40), seed=st.integers(0, 99))
def test_tiles_of_any_edge_equal_the_plain_loss(num: int, num_groups: int, seed: int) -> None:
    image, text = pairs(num, 3, seed=seed)
    groups = torch.randint(0, num_groups, (num,), generator=torch.Generator().manual_seed(seed))
    before = tiles.TILE_ROWS, tiles.TILE_COLUMNS
    tiles.TILE_ROWS, tiles.TILE_COLUMNS = 4, 6
    grads = []
    try:
        for loss_of in (sigmoid_loss, tiled_sigmoid_loss):
            inputs = [x.clone().requires_grad_() for x in (image, text, torch.tensor(20.0), torch.tensor(-5.0))]
            loss = loss_of(inputs[0], inputs[1], inputs[2], inputs[3], groups)
            loss.backward()
            grads.append([loss.detach(), *(tensor.grad for tensor in inputs)])
    finally:
        tiles.TILE_ROWS, tiles.TILE_COLUMNS = before
    for plain, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-5)
