"""A sanity check of the training pipeline: overfit one batch."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from diptych.core.deprecation import renamed_names
from diptych.core.errors import ConfigError, DataError
from diptych.core.program import command
from diptych.core.randomness import stable_hash
from diptych.data.batches.batch import Batch
from diptych.data.batches.loader import training_batches
from diptych.device.distributed import ALONE, all_ranks
from diptych.device.hardware import choose_device
from diptych.models.config import ViTConfig
from diptych.training.config import TrainConfig
from diptych.training.distillation import DistillConfig
from diptych.training.loss import LossConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.report.diagnosis import diagnose, diagnostics
from diptych.training.setup import assemble, open_data, training_examples
from diptych.training.starting_point import starting_point, with_resolved_towers

_NUM_PAIRS = 16
_TARGET_LOSS = 0.05
_MAX_STEPS, _MAX_S = 400, 120.0
_LR, _WARMUP_STEPS = 5e-4, 10


__getattr__ = renamed_names(__name__, {"self_check": "overfit_one_batch"})


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Result of `overfit_one_batch`."""

    learned: bool
    """Whether the loss fell below 0.05."""
    num_pairs: int
    first_loss: float
    last_loss: float
    steps: int
    seconds: float
    diagnosis: str | None
    """Possible causes, if the loss did not fall below 0.05; otherwise None."""


def overfit_one_batch(
    config: TrainConfig, *, on_step: Callable[[int, float], None] = lambda _step, _loss: None
) -> CheckResult:
    """Train repeatedly on up to 16 pairs of the run's first batch, until the loss is below 0.05, for 400 steps or 2 minutes.

    It uses the data, tokenizer and towers of the run, with AdamW at a learning rate of 5e-4. Regularization (weight decay,
    patch dropout, label smoothing), frozen weights and distillation are disabled. Nothing is written to disk.

    Args:
        config: config of the run to check.
        on_step: called after each step with the number of steps so far and the loss.

    Raises:
        ConfigError: the run cannot start, or several processes were launched.
        DataError: the data cannot be read, or all pairs of the first batch are positives of each other.
    """
    if all_ranks().size > 1:
        raise ConfigError("overfitting one batch needs a single process; run it without the launcher")
    easy = _without_regularization(with_resolved_towers(config))
    source, _ = open_data(config)
    start = starting_point(easy, None, source, ALONE)
    easy = replace(easy, model=start.model.config)
    assembly = assemble(easy, start.model.to(choose_device(config.device)), start.tokenizer, ALONE)
    examples = training_examples(source, easy)
    size = min(easy.batch_size, 4 * _NUM_PAIRS)
    batch = _distinct_pairs(next(training_batches(examples, start.tokenizer, batch_size=size)))
    if len(batch.keys) < 2:  # The loss of one pair is 0 from the first step on.
        raise DataError(
            f"{config.data.source}: nothing can be learned from {size} pairs that are all positives of each other; the first "
            f"caption is {batch.captions[0]!r:.60}. Give the images different captions, or inspect them: "
            + command("data", "audit", config.data.source)
        )
    assembly.model.train()
    started, losses = time.monotonic(), list[float]()
    while not losses or (
        losses[-1] >= _TARGET_LOSS and len(losses) < _MAX_STEPS and time.monotonic() - started < _MAX_S
    ):
        lr = _LR * min(1.0, (len(losses) + 1) / _WARMUP_STEPS)
        result = assembly.step(batch, lr=lr, seed=stable_hash(easy.seed, "check"))
        losses.append(result.loss)
        on_step(len(losses), result.loss)
    learned = losses[-1] < _TARGET_LOSS
    measured = diagnostics(assembly.model, batch, result, lr=lr, warmup_left=0)
    return CheckResult(
        learned=learned,
        num_pairs=len(batch.keys),
        first_loss=losses[0],
        last_loss=losses[-1],
        steps=len(losses),
        seconds=time.monotonic() - started,
        diagnosis=None if learned else diagnose(measured, ln_n=math.log(len(batch.keys)), steps=len(losses)),
    )


def _without_regularization(config: TrainConfig) -> TrainConfig:
    image = config.model.image
    if isinstance(image, ViTConfig):
        image = replace(image, patch_dropout=0.0)
    return replace(
        config,
        model=replace(config.model, image=image),
        data=replace(config.data, workers=0),
        loss=LossConfig(name=config.loss.name),
        distill=DistillConfig(),
        optimizer=OptimizerConfig(weight_decay=0.0),
        lock=type(config.lock)(),
        micro_batch=None,
        ema=None,
        compile=False,
    )


def _distinct_pairs(batch: Batch) -> Batch:
    """Up to 16 rows of a batch, none a positive of another. With other positives, the minimum of the loss would be above 0."""
    groups = batch.positive_groups.tolist()
    rows = [groups.index(group) for group in dict.fromkeys(groups)][:_NUM_PAIRS]
    texts = batch.text_of_row[rows]
    lengths = batch.lengths[texts]
    return replace(
        batch,
        pixels=batch.pixels[rows],
        ids=batch.ids[texts, : int(lengths.max())],
        lengths=lengths,
        packed=(),
        text_of_row=torch.arange(len(rows)),
        positive_groups=torch.arange(len(rows)),
        positive_keys=batch.positive_keys[rows],
        keys=tuple(batch.keys[row] for row in rows),
        captions=tuple(batch.captions[row] for row in rows),
    )
