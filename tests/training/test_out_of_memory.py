"""Out of memory in a training step: forward passes of more than a given number of pairs raise the error of CUDA."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.errors import RunError
from diptych.models.clip import CLIP
from diptych.models.config import ConvNetConfig
from diptych.training.out_of_memory import suggest_micro_batch, take_step
from diptych.training.run import train
from diptych.training.step import TrainingStep
from diptych.training.step_result import StepResult
from tests.conftest import TINY_MODEL, TINY_RUN
from tests.training.listener import Listener
from tests.training.makers import batch_of, model_of, step_of

OPTIONS: Any = {"lr": 1e-3, "seed": 0, "small_px": None}


def _room_for(monkeypatch: pytest.MonkeyPatch, num: int, *, after: int = 0) -> list[int]:
    """Make forward passes of more than `num` pairs raise, after the first `after` passes. Returns the sizes of all passes."""
    sizes: list[int] = []
    forward = CLIP.forward

    def limited(self: CLIP, pixels: Any, ids: Any, lengths: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > num and len(sizes) > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, pixels, ids, lengths)

    monkeypatch.setattr(CLIP, "forward", limited)
    return sizes


def test_the_first_micro_batch_that_fits_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    step, batch = step_of(model_of(TINY_MODEL)), batch_of(TINY_MODEL)
    sizes = _room_for(monkeypatch, 3)
    assert suggest_micro_batch(step, batch, **OPTIONS) == 3
    assert list(dict.fromkeys(sizes)) == [6, 3]
    assert step.micro_batch is None
    _room_for(monkeypatch, 0)
    assert suggest_micro_batch(step, batch, **OPTIONS) is None


def test_the_message_names_a_size_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    step, batch = step_of(model_of(TINY_MODEL), micro_batch=6), batch_of(TINY_MODEL)
    _room_for(monkeypatch, 2)
    message = (
        "out of memory in the first step, with 6 pairs encoded at once; use --micro-batch 1, which fits, or --set "
    )
    with pytest.raises(RunError, match=message + "gradient_checkpointing=true") as raised:
        take_step(step, batch, is_first=True, **OPTIONS)
    assert "\n" not in str(raised.value)
    assert raised.value.__suppress_context__
    with pytest.raises(RunError, match=r"after the first step \(.*; use --micro-batch 3, or"):
        take_step(step, batch, is_first=False, **OPTIONS)


def test_an_optimizer_without_memory_is_tried_again_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients were already divided by their scale, which a scaler does only once per update."""
    step, batch = step_of(model_of(TINY_MODEL), precision="fp16"), batch_of(TINY_MODEL)
    while step(batch, **OPTIONS).skipped:  # The scale is still too large.
        pass
    update = step.optimizers[0].step

    def limited(*args: Any, **options: Any) -> Any:
        if step.micro_batch is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return update(*args, **options)

    monkeypatch.setattr(step.optimizers[0], "step", limited)
    with pytest.raises(RunError, match="use --micro-batch 6, which fits"):
        take_step(step, batch, is_first=True, **OPTIONS)


def test_nothing_fits_and_no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    image = ConvNetConfig(image_px=32, stem_stride=2, widths=(8, 16), layers=(1, 1))
    config = replace(TINY_MODEL, image=image)
    _room_for(monkeypatch, 0)
    with pytest.raises(RunError, match=r"12 pairs encoded at once; use a smaller model$"):
        take_step(step_of(model_of(config)), batch_of(config), is_first=True, **OPTIONS)


def test_several_ranks_try_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may have had enough memory, and would wait for this one."""
    step, batch = step_of(model_of(TINY_MODEL)), batch_of(TINY_MODEL)
    step.ranks = step.ranks._replace(size=2)
    tried = []

    def fails(self: TrainingStep, *_: Any, **__: Any) -> StepResult:
        tried.append(self.micro_batch)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrainingStep, "__call__", fails)
    with pytest.raises(RunError, match="use --micro-batch 6, or"):
        take_step(step, batch, is_first=True, **OPTIONS)
    assert tried == [None]


@pytest.mark.parametrize("first", [True, False])
def test_a_run_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, first: bool) -> None:
    _room_for(monkeypatch, 4, after=0 if first else 2)
    listener = Listener()
    found = (
        "in the first step, with 16 pairs .*-batch 4, which fits" if first else "after the first step .*-batch 8, or"
    )
    with pytest.raises(RunError, match=found):
        train(TINY_RUN, tmp_path / "run", observers=[listener])
    assert listener.num_closed == 1
