"""The tiled loss against the plain one and against double precision; its memory. Shapes: N batch, E embedding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from diptych.losses import tiles
from diptych.losses.contrastive import clip_loss
from diptych.losses.tiled import tiled_clip_loss
from tests.losses.makers import pairs, relative


def _in_double(
    image: Tensor, text: Tensor, scale: float, groups: Tensor | None, smoothing: float
) -> tuple[Tensor, list[Tensor]]:
    """The definition over the whole matrix, and its gradients, in float64."""
    inputs = [tensor.double().requires_grad_() for tensor in (image, text, torch.tensor(scale))]
    logits = inputs[2] * inputs[0] @ inputs[1].T
    same = torch.eye(len(image)) if groups is None else (groups[:, None] == groups[None, :])
    target = same.double() / same.double().sum(dim=1, keepdim=True)
    target = (1 - smoothing) * target + smoothing / len(image)
    loss = -(target * (logits.log_softmax(dim=1) + logits.T.log_softmax(dim=1))).sum() / (2 * len(image))
    loss.backward()
    return loss.detach(), [tensor.grad for tensor in inputs if tensor.grad is not None]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("scale", "likeness", "smoothing"),
    [(1.0, 0.1, 0.0), (14.3, 0.1, 0.0), (14.3, 0.5, 0.1), (50.0, 0.1, 0.0), (100.0, 0.1, 0.0), (100.0, 0.2, 0.1)],
)
def test_gradients_are_exact(scale: float, likeness: float, smoothing: float, *, grouped: bool) -> None:
    """Sizes that fill no tile, at logit scales up to CLIP's limit of 100."""
    num = 1300
    image, text = pairs(num, 64, likeness=likeness)
    groups = torch.randint(0, num // 3, (num,), generator=torch.Generator().manual_seed(1)) if grouped else None
    exact, exact_grads = _in_double(image, text, scale, groups, smoothing)
    inputs = [tensor.clone().requires_grad_() for tensor in (image, text, torch.tensor(scale))]
    loss = tiled_clip_loss(inputs[0], inputs[1], inputs[2], groups, label_smoothing=smoothing)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(exact), rel=5e-6)
    for tensor, grad in zip(inputs, exact_grads, strict=True):
        assert relative(tensor.grad, grad) <= 5e-6


def test_what_is_nearly_learned_keeps_its_digits() -> None:
    """Where each pair is found with 99.7 %, weights and targets nearly cancel."""
    image, text = pairs(2048, 512, likeness=0.3)
    exact, exact_grads = _in_double(image, text, 100.0, None, 0.0)
    assert float(exact) < 0.01
    inputs = [tensor.clone().requires_grad_() for tensor in (image, text)]
    tiled_clip_loss(inputs[0], inputs[1], torch.tensor(100.0)).backward()
    for tensor, grad in zip(inputs, exact_grads[:2], strict=True):
        assert relative(tensor.grad, grad) <= 5e-6


@given(
    num=st.integers(1, 40),
    num_groups=st.integers(1, 40),
    scale=st.sampled_from([3.0, 29.0, 31.0, 100.0]),
    smoothing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_loss(*, num: int, num_groups: int, scale: float, smoothing: float, seed: int) -> None:
    """With tiles of 4 x 6, so that every kind of edge occurs."""
    image, text = pairs(num, 3, seed=seed)
    groups = torch.randint(0, num_groups, (num,), generator=torch.Generator().manual_seed(seed))
    grads = []
    before = tiles.TILE_ROWS, tiles.TILE_COLUMNS
    tiles.TILE_ROWS, tiles.TILE_COLUMNS = 4, 6
    try:
        for loss_of in (clip_loss, tiled_clip_loss):
            inputs = [tensor.double().float().requires_grad_() for tensor in (image, text, torch.tensor(scale))]
            loss = loss_of(inputs[0], inputs[1], inputs[2], groups, label_smoothing=smoothing)
            (3 * loss).backward()
            grads.append([loss.detach(), *(tensor.grad for tensor in inputs)])
    finally:
        tiles.TILE_ROWS, tiles.TILE_COLUMNS = before
    for plain, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-5)


def test_rows_far_below_the_largest_logit_are_not_lost() -> None:
    """One pair of cosine 1 beside rows that like nothing: their logits are 100 and more below it."""
    image = functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, -1, 1e-3]]), dim=1)
    text = functional.normalize(torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, -0.9, 1e-3]]), dim=1)
    exact, exact_grads = _in_double(image, text, 100.0, None, 0.0)
    inputs = [tensor.clone().requires_grad_() for tensor in (image, text)]
    loss = tiled_clip_loss(inputs[0], inputs[1], torch.tensor(100.0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-5)
    for tensor, grad in zip(inputs, exact_grads[:2], strict=True):
        assert relative(tensor.grad, grad) <= 5e-6


def test_half_precision_embeddings_are_summed_in_single() -> None:
    image, text = (tensor.bfloat16() for tensor in pairs(300, 32))
    exact, exact_grads = _in_double(image, text, 20.0, None, 0.0)
    inputs = [tensor.clone().requires_grad_() for tensor in (image, text)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiled_clip_loss(inputs[0], inputs[1], torch.tensor(20.0))
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact), rel=5e-6)
    assert inputs[0].grad is not None
    assert inputs[0].grad.dtype == torch.bfloat16
    assert relative(inputs[0].grad, exact_grads[0]) < 4e-3


def test_no_matrix_is_ever_held() -> None:
    """Every tensor that either pass makes is counted; the matrix would have 4096 x 4096 numbers."""
    image, text = pairs(4096, 8)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Callable[..., Any], _types: object, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    image.requires_grad_()
    with Watch():  # type: ignore[no-untyped-call]
        tiled_clip_loss(image, text, torch.tensor(100.0)).backward()
    assert 4096 * 8 <= largest <= 512 * 1024


def test_across_ranks_is_an_old_name_of_ranks() -> None:
    image_emb, text_emb = pairs(6, 4)
    scale = torch.tensor(10.0)
    with pytest.warns(DeprecationWarning, match="across_ranks of tiled_clip_loss is deprecated; use ranks"):
        loss = tiled_clip_loss(image_emb, text_emb, scale, across_ranks=True)  # type: ignore[call-arg]
    assert torch.equal(loss, tiled_clip_loss(image_emb, text_emb, scale))
