"""Report that a GPU ran out of memory in a training step: a one-line error that suggests settings."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypedDict, Unpack

import torch

from diptych.core.errors import RunError
from diptych.data.batches.batch import Batch
from diptych.models.config import STAGED, TimmConfig
from diptych.training.precision import gradient_scaler
from diptych.training.step import TrainingStep
from diptych.training.step_result import StepResult


class StepOptions(TypedDict):
    """Arguments of `TrainingStep.__call__`."""

    lr: float
    seed: int
    small_px: int | None


def take_step(step: TrainingStep, batch: Batch, *, is_first: bool, **options: Unpack[StepOptions]) -> StepResult:
    """Take a training step; if memory runs out, raise a one-line error.

    If this happens in the first step of a process, the batch is tried again with smaller micro-batches, so that the message can
    name one that fits. The trials may change weights and optimizers, which are not used after the error. With several ranks,
    nothing is tried, because the other ranks may have had enough memory and wait for this one.

    Raises:
        RunError: the device has run out of memory.
    """
    try:
        return step(batch, **options)
    except torch.OutOfMemoryError:
        pass  # At the end of this block, the tensors of the step are released.
    step_without_update: StepOptions = {**options, "lr": 0.0}
    pairs = step.micro_batch or len(batch.pixels)
    tries = is_first and step.ranks.size == 1
    fits = suggest_micro_batch(step, batch, **step_without_update) if tries else _next_smaller(pairs, len(batch.pixels))
    raise RunError(_explain(step, pairs=pairs, fits=fits, is_tried=tries, is_first=is_first)) from None


def suggest_micro_batch(step: TrainingStep, batch: Batch, **options: Unpack[StepOptions]) -> int | None:
    """The first of ever smaller micro-batches with which a step does not run out of memory; None if none does.

    Each divides the number of pairs in the batch and is at most half of the one before.
    """
    batch = replace(batch, packed=())  # The texts were packed for parts of another size.
    num, before = len(batch.pixels), step.micro_batch
    size = _next_smaller(before or num, num)
    try:
        while size is not None:
            _release(step)
            step.micro_batch = size
            # Compiled blocks would be compiled again for each size.
            with torch.compiler.set_stance("force_eager"):
                is_enough = _fits(lambda: step(batch, **options))
            if is_enough:
                return size
            size = _next_smaller(size, num)
    finally:
        step.micro_batch = before
    return None


def _fits(action: Callable[[], object]) -> bool:
    try:
        action()
    except torch.OutOfMemoryError:
        return False
    return True


def _release(step: TrainingStep) -> None:
    """Release gradients and cached memory blocks, whose sizes fit the larger micro-batch, and reset the gradient scaler."""
    for parameter in step.model.parameters():
        parameter.grad = None
    step.scaler = gradient_scaler(step.precision, step.device)  # An interrupted update cannot be repeated.
    if step.device.type == "cuda":
        torch.cuda.empty_cache()


def _next_smaller(size: int, num: int) -> int | None:
    """The largest divisor of `num` that is at most half of `size`; None below 1.

    >>> _next_smaller(1024, 1024), _next_smaller(5, 15), _next_smaller(1, 15)
    (512, 1, None)
    """
    return next((divisor for divisor in range(size // 2, 0, -1) if num % divisor == 0), None)


def _explain(step: TrainingStep, *, pairs: int, fits: int | None, is_tried: bool, is_first: bool) -> str:
    when = "in the first step" if is_first else "after the first step (longer captions, or another process on the GPU)"
    ways = []
    if fits is not None:
        ways.append(f"--micro-batch {fits}{', which fits' if is_tried else ''}")
    if not isinstance(step.model.config.image, (*STAGED, TimmConfig)) and not step.model.gradient_checkpointing:
        ways.append("--set gradient_checkpointing=true, which recomputes activations")
    if fits is None:
        ways.append("a smaller model")
    return f"out of memory {when}, with {pairs:,} pairs encoded at once; use {', or '.join(ways)}"
