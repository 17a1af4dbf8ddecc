"""Halves of a batch in two threads: the gradients of the whole, and every time the same."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Event
from typing import TypeVar

import pytest
import torch

from diptych.cpu.halves import ParallelHalves, can_halve
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ConvNetConfig, ViTConfig
from tests.conftest import TINY_MODEL
from tests.training.makers import assert_close, batch_of, gradients, gradients_of, model_of, step_of

_MANY_WORDS = replace(TINY_MODEL, text=replace(TINY_MODEL.text, vocab_size=20_000))
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _gradients(
    config: CLIPConfig,
    dtype: torch.dtype,
    *,
    size: int,
    distinct: int,
    threads: int,
    runner: type[ParallelHalves] | None = None,
) -> tuple[dict[str, torch.Tensor], float]:
    torch.set_num_threads(threads)
    step = step_of(model_of(config, dtype), runner=(runner or ParallelHalves)() if threads > 1 else None)
    return gradients_of(step, batch_of(config, size=size, distinct=distinct))


_BATCHES = pytest.mark.parametrize(("size", "distinct"), [(12, 12), (12, 5), (11, 1), (2, 2)])
_MODELS = pytest.mark.parametrize("config", [TINY_MODEL, _MANY_WORDS], ids=["few words", "many words"])


@_MODELS
@_BATCHES
def test_halves_give_the_gradients_of_the_whole(config: CLIPConfig, size: int, distinct: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        whole, loss = _gradients(config, dtype, size=size, distinct=distinct, threads=1)
        halves, loss_of_halves = _gradients(config, dtype, size=size, distinct=distinct, threads=2)
        assert loss_of_halves == pytest.approx(loss, rel=tolerance, abs=tolerance)
        assert_close(halves, whole, tolerance)


@_MODELS
@_BATCHES
def test_halves_give_bit_for_bit_the_same_each_time(config: CLIPConfig, size: int, distinct: int) -> None:
    first, *others = [_gradients(config, torch.float32, size=size, distinct=distinct, threads=2) for _ in range(8)]
    for other in others:
        assert other[1] == first[1]
        assert all(torch.equal(grad, first[0][name]) for name, grad in other[0].items())


class _OneByOne(ParallelHalves):
    first = 0

    def map(self, work: Callable[[_Given], _Made], given: Sequence[_Given]) -> list[_Made]:
        is_first_done = Event()

        def in_turn(place: int) -> _Made:
            if place != self.first:
                assert is_first_done.wait(60)
                return work(given[place])
            try:
                return work(given[place])
            finally:
                is_first_done.set()

        return super().map(in_turn, range(len(given)))


class _SecondFirst(_OneByOne):
    first = 1


@_MODELS
@pytest.mark.parametrize(("size", "distinct"), [(12, 12), (12, 5), (40, 40)])
def test_it_does_not_matter_which_half_comes_first(config: CLIPConfig, size: int, distinct: int) -> None:
    orders = [
        _gradients(config, torch.float32, size=size, distinct=distinct, threads=2, runner=order)
        for order in (_OneByOne, _SecondFirst)
    ]
    (ours, loss), (other, other_loss) = orders
    assert loss == other_loss
    assert all(torch.equal(grad, other[name]) for name, grad in ours.items())


def test_a_batch_of_one_is_not_halved_and_one_in_parts_is_not_halved_further() -> None:
    one = batch_of(TINY_MODEL, size=1, distinct=1)
    assert step_of(CLIP(TINY_MODEL), runner=ParallelHalves())(one, lr=1e-3, seed=0).loss == pytest.approx(0, abs=1e-6)
    parts, _ = gradients(TINY_MODEL, batch_of(TINY_MODEL), torch.float64, micro_batch=3, runner=ParallelHalves())
    whole, _ = _gradients(TINY_MODEL, torch.float64, size=12, distinct=12, threads=1)
    assert_close(parts, whole, 1e-12)


@pytest.mark.parametrize("tower", ["image_tower", "text_tower"])
def test_a_locked_tower_stays_without_gradient(tower: str) -> None:
    model = model_of(TINY_MODEL)
    getattr(model, tower).requires_grad_(False)
    step = step_of(model, runner=ParallelHalves())
    step(batch_of(TINY_MODEL), lr=1e-3, seed=0)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(tower)


def test_what_counts_a_batch_or_draws_or_is_computed_again_goes_through_whole() -> None:
    image, text = TINY_MODEL.image, TINY_MODEL.own_text
    assert isinstance(image, ViTConfig)
    convolutional = ConvNetConfig(image_px=32, widths=(8, 16), layers=(1, 1))
    for config in (
        replace(TINY_MODEL, text=replace(text, dropout=0.1)),
        replace(TINY_MODEL, image=replace(image, patch_dropout=0.5)),
        replace(TINY_MODEL, image=convolutional),
    ):
        assert not can_halve(CLIP(config))
    model = CLIP(TINY_MODEL)
    assert can_halve(model)
    model.set_gradient_checkpointing(True)
    assert not can_halve(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # PyTorch's own, as it loads.
def test_a_compiled_tower_goes_through_whole() -> None:
    model = CLIP(TINY_MODEL)
    model.image_tower.compile()
    assert not can_halve(model)


@pytest.mark.parametrize(("threads", "is_halved"), [(1, False), (2, True), (3, False), (4, True)])
def test_cores_that_cannot_be_shared_in_two_stay_together(threads: int, is_halved: bool) -> None:
    torch.set_num_threads(threads)
    assert can_halve(CLIP(TINY_MODEL)) == is_halved


def test_each_thread_has_its_share_and_the_caller_all() -> None:
    torch.set_num_threads(4)
    both = ParallelHalves()
    assert torch.get_num_threads() == 4
    assert both.map(lambda _: torch.get_num_threads(), range(2)) == [2, 2]
    assert torch.get_num_threads() == 4


def test_what_goes_wrong_in_one_is_raised_when_both_are_done() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("the first")
        done.append(number)

    with pytest.raises(ValueError, match="the first"):
        ParallelHalves().map(work, range(2))
    assert done == [1]
