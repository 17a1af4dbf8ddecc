"""What a run looks out for: steps that had to be skipped, and a loss that does not leave ln(N)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.distributed import ALONE, Ranks
from diptych.core.errors import NotFiniteError, RunError
from diptych.core.program import command
from diptych.data.batches.batch import Batch
from diptych.images.tensors import normalize
from diptych.models.clip import CLIP
from diptych.training.loss import LossConfig
from diptych.training.parallel.tensors import grad_norm
from diptych.training.step import StepResult

MAX_STRIKES = 10
"""Steps in a row without a finite loss and gradient, after which the run stops."""
_STUCK_STEPS = 500
_STUCK_SHARE = 0.01
_HIGH_LR = 0.02
"""Above this, training with any of the optimizers usually diverges."""
_FEW = 64
"""Pictures and texts that are looked at again."""


class TrainingMonitor:
    """Counts over the steps of a run."""

    def __init__(self, batch_size: int, *, loss: LossConfig | None = None) -> None:
        self.ln_n = math.log(batch_size)
        self._has_ln_n = loss is None or loss.name == "clip"  # The sigmoid loss of knowing nothing is another number.
        self.strikes = 0
        self._stuck = 0

    def skipped(self, result: StepResult, batch: Batch, step: int, *, lr: float) -> str | None:
        """A message if the step had to be skipped.

        Raises:
            RunError: ten in a row were.
        """
        self.strikes = self.strikes + 1 if result.skipped else 0
        if not result.skipped:
            return None
        what = f"loss {result.loss:g}, gradient norm {result.grad_norm:g}: not finite"
        if self.strikes == MAX_STRIKES:
            raise RunError(f"{what}, {MAX_STRIKES} steps in a row: the weights have diverged; {_lower(lr)}")
        return f"step {step} skipped: {what}; its samples: {', '.join(batch.keys)}"

    def is_stuck(self, loss: float) -> bool:
        """Whether the loss has stayed within 1 % of ln(N) for 500 steps; true once for each such stretch."""
        is_near = self._has_ln_n and abs(loss - self.ln_n) <= _STUCK_SHARE * self.ln_n
        self._stuck = self._stuck + 1 if is_near else 0
        return self._stuck == _STUCK_STEPS


@contextmanager
def divergence_stops(lr: float) -> Iterator[None]:
    """Embeddings that are not numbers end the block as what they are in a run: weights that have diverged.

    Raises:
        RunError: the model gave some; the message names the peak learning rate.
    """
    try:
        yield
    except NotFiniteError as error:
        raise RunError(f"{error}; {_lower(lr)}") from None


def _lower(lr: float) -> str:
    return f"the learning rate is {lr:.3g}: lower it (--lr), or raise it more slowly (--schedule.warmup-steps)"


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What a loss may be stuck for."""

    lr: float
    warmup_left: int
    """Steps until the learning rate has risen."""
    grad_norms: tuple[float, float]
    """Of the image tower's weights and the text tower's."""
    logit_scale: float
    num_positives: float
    """Positives of a row in the batch beside its own partner, on average."""
    spread: tuple[float, float]
    """How much embeddings of the batch differ from each other: one less their mean cosine, of images and texts."""
    keys: tuple[str, ...]
    captions: tuple[str, ...]


@torch.no_grad()
def diagnostics(
    model: CLIP, batch: Batch, result: StepResult, ranks: Ranks = ALONE, *, lr: float, warmup_left: int
) -> Diagnostics:
    """What the run at hand looks like after a step whose gradients still lie on the weights."""
    counts = torch.unique(batch.positive_groups, return_counts=True)[1]
    device = model.log_logit_scale.device
    pixels = normalize(batch.pixels[:_FEW].to(device), model.config.pixels)
    output = model(pixels, batch.ids[:_FEW].to(device), batch.lengths[:_FEW])
    return Diagnostics(
        lr=lr,
        warmup_left=warmup_left,
        grad_norms=(_grad_norm(model.image_tower, ranks), _grad_norm(model.text_tower, ranks)),
        logit_scale=result.logit_scale,
        num_positives=float(counts.square().sum()) / len(batch.positive_groups) - 1,
        spread=(_spread(output.image_emb), _spread(output.text_emb)),
        keys=batch.keys,
        captions=batch.captions,
    )


def diagnose(seen: Diagnostics, *, ln_n: float, steps: int = _STUCK_STEPS) -> str:
    """What usually keeps a loss at ln(N), checked one by one; what speaks for being the cause is marked."""
    image_norm, text_norm = seen.grad_norms
    tower = "image" if image_norm == 0 else "text"
    findings: Sequence[tuple[bool, str, str]] = (
        (
            not 2 <= seen.logit_scale <= 99,
            f"temperature {1 / seen.logit_scale:.3g} is at its limit; start at 0.07 (model.init_temperature)",
            f"temperature {1 / seen.logit_scale:.3g}: usual",
        ),
        (
            seen.warmup_left > 0 or seen.lr > _HIGH_LR,
            f"learning rate {seen.lr:.2g} is high; lower it (--lr)"
            if seen.lr > _HIGH_LR
            else f"learning rate {seen.lr:.2g} still rises for {seen.warmup_left:,} steps; set fewer (schedule.warmup_steps)",
            f"learning rate {seen.lr:.2g}: past its warm-up; if it is above 1e-3, lower it (--lr), below 1e-5, raise it",
        ),
        (
            min(seen.grad_norms) == 0,
            f"the {tower} tower gets no gradient: it is locked (lock.{tower})",
            f"gradients reach both towers ({image_norm:.2g} images, {text_norm:.2g} texts)",
        ),
        (
            min(seen.spread) < 1e-3,
            f"all {'pictures' if seen.spread[0] < 1e-3 else 'texts'} of a batch have one embedding: lower --lr, or look at "
            "whether they differ at all",
            "embeddings differ from each other",
        ),
        (
            seen.num_positives > 1,
            f"captions repeat: a row has {seen.num_positives:.1f} other positives in its batch, so the least possible loss is "
            "not far below ln(N); keep them apart (--data.positives_in_batch apart)",
            "captions hardly repeat within a batch",
        ),
    )
    lines = [f"  {'->' if is_cause else 'ok'} {bad if is_cause else good}" for is_cause, bad, good in findings]
    pairs = "; ".join(f"{key}: {caption!r}" for key, caption in list(zip(seen.keys, seen.captions, strict=True))[:3])
    return "\n".join(
        [
            f"The loss has not left ln N = {ln_n:.2f} for {steps} steps: nothing is learned. What it may be:",
            *lines,
            f"  ?? do captions belong to their pictures? {pairs} ({command('data', 'show')} draws more)",
            f"  ?? can it learn at all? {command('train')} ... --check learns one batch by heart",
        ]
    )


def _spread(emb: Tensor) -> float:
    return 1 - float(emb.mean(dim=0).square().sum())


def _grad_norm(module: torch.nn.Module, ranks: Ranks) -> float:
    return float(grad_norm(module.parameters(), ranks))
