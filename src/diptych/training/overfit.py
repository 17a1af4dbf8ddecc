"""Can the pipeline learn at all? One batch, learned by heart."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from diptych.core.device import choose_device
from diptych.core.distributed import ALONE, all_ranks
from diptych.core.errors import ConfigError, DataError
from diptych.core.program import command
from diptych.core.randomness import stable_hash
from diptych.data.batches.batch import Batch
from diptych.data.batches.loader import training_batches
from diptych.models.config import ViTConfig
from diptych.training.config import TrainConfig
from diptych.training.distillation import DistillConfig
from diptych.training.loss import LossConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.report.diagnosis import diagnose, diagnostics
from diptych.training.setup import assemble, open_data, starting_point, training_examples

_PAIRS = 16
_LEARNED = 0.05
_MAX_STEPS, _MAX_S = 400, 120.0
_LR, _WARMUP_STEPS = 5e-4, 10


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """How it went."""

    learned: bool
    """Whether the loss fell below 0.05."""
    num_pairs: int
    first_loss: float
    last_loss: float
    steps: int
    seconds: float
    diagnosis: str | None
    """What may be the cause, if it did not learn."""


def self_check(
    config: TrainConfig, *, on_step: Callable[[int, float], None] = lambda _step, _loss: None
) -> CheckResult:
    """Train on a few pairs of the run's first batch, over and over, until their loss is below 0.05.

    The run's own data, tokenizer and towers, with AdamW at a rate that suits most; what makes learning by heart harder (decay,
    dropout, smoothing, locks) is left out. Nothing is written.

    Args:
        config: the run that is in question.
        on_step: told the step and the loss.

    Raises:
        ConfigError, DataError: the run could not begin, or the first batch holds the same caption throughout.
    """
    if all_ranks().size > 1:
        raise ConfigError("one process is enough to learn a batch by heart; leave out the launcher")
    easy = _without_hurdles(config)
    source, _ = open_data(config)
    start = starting_point(easy, None, source, ALONE)
    easy = replace(easy, model=start.model.config)
    assembly = assemble(easy, start.model.to(choose_device(config.device)), start.tokenizer, ALONE)
    examples = training_examples(source, easy)
    size = min(easy.batch_size, 4 * _PAIRS)
    batch = _distinct(next(training_batches(examples, start.tokenizer, batch_size=size)))
    if len(batch.keys) < 2:  # Their loss would be 0 from the first step on.
        raise DataError(
            f"{config.data.source}: nothing can be learned from {size} pairs that are all positives of each other; the first "
            f"caption is {batch.captions[0]!r:.60}. Give the pictures different captions, or look at them: "
            + command("data", "audit", config.data.source)
        )
    assembly.model.train()
    began, losses = time.monotonic(), list[float]()
    while not losses or (losses[-1] >= _LEARNED and len(losses) < _MAX_STEPS and time.monotonic() - began < _MAX_S):
        lr = _LR * min(1.0, (len(losses) + 1) / _WARMUP_STEPS)
        result = assembly.step(batch, lr=lr, seed=stable_hash(easy.seed, "check"))
        losses.append(result.loss)
        on_step(len(losses), result.loss)
    learned = losses[-1] < _LEARNED
    seen = diagnostics(assembly.model, batch, result, lr=lr, warmup_left=0)
    return CheckResult(
        learned=learned,
        num_pairs=len(batch.keys),
        first_loss=losses[0],
        last_loss=losses[-1],
        steps=len(losses),
        seconds=time.monotonic() - began,
        diagnosis=None if learned else diagnose(seen, ln_n=math.log(len(batch.keys)), steps=len(losses)),
    )


def _without_hurdles(config: TrainConfig) -> TrainConfig:
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


def _distinct(batch: Batch) -> Batch:
    """A few rows of it, none a positive of another: only then can the loss come near zero."""
    groups = batch.positive_groups.tolist()
    rows = [groups.index(group) for group in dict.fromkeys(groups)][:_PAIRS]
    texts = batch.text_of_row[rows]
    lengths = batch.lengths[texts]
    return replace(
        batch,
        pixels=batch.pixels[rows],
        ids=batch.ids[texts, : int(lengths.max())],
        lengths=lengths,
        text_of_row=torch.arange(len(rows)),
        positive_groups=torch.arange(len(rows)),
        positive_keys=batch.positive_keys[rows],
        keys=tuple(batch.keys[row] for row in rows),
        captions=tuple(batch.captions[row] for row in rows),
    )
