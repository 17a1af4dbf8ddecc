"""Detects skipped steps and a loss that stays at ln(N), and lists possible causes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.errors import NotFiniteError, RunError
from diptych.core.program import command
from diptych.data.batches.batch import Batch
from diptych.device.distributed import ALONE, Ranks
from diptych.images.tensors import normalize
from diptych.models.clip import CLIP
from diptych.training.loss import LossConfig
from diptych.training.parallel.tensors import grad_norm
from diptych.training.step_result import StepResult

MAX_STRIKES = 10
"""Number of consecutive skipped steps after which the run stops."""
_STUCK_STEPS = 500
_STUCK_SHARE = 0.01
_HIGH_LR = 0.02
"""Above this learning rate, training usually diverges with any of the optimizers."""
_NUM_ENCODED = 64
"""Number of images and of texts that are encoded again for a diagnosis."""


class TrainingMonitor:
    """Counts skipped steps and steps with a loss near ln(N).

    Args:
        batch_size: number of pairs N in a batch, over all ranks.
        loss: loss of the run; the check against ln(N) applies only to `clip`.
    """

    def __init__(self, batch_size: int, *, loss: LossConfig | None = None) -> None:
        self.ln_n = math.log(batch_size)
        self._has_ln_n = loss is None or loss.name == "clip"  # The sigmoid loss of uniform guessing is not ln(N).
        self.strikes = 0
        self._stuck = 0

    def skipped(self, result: StepResult, keys: Sequence[str], step: int, *, lr: float) -> str | None:
        """Record a step. Returns a message if it was skipped, otherwise None.

        Args:
            result: the result of the step.
            keys: the keys of its samples.
            step: number of the step.
            lr: learning rate, for the message of the error.

        Raises:
            RunError: ten consecutive steps were skipped.
        """
        self.strikes = self.strikes + 1 if result.skipped else 0
        if not result.skipped:
            return None
        what = f"loss {result.loss:g}, gradient norm {result.grad_norm:g}: not finite"
        if self.strikes == MAX_STRIKES:
            raise RunError(f"{what}, {MAX_STRIKES} steps in a row: the weights have diverged; {_lr_advice(lr)}")
        return f"step {step} skipped: {what}; its samples: {', '.join(keys)}"

    def is_stuck(self, loss: float) -> bool:
        """Record the loss of a step. Returns True at the 500th consecutive step with a loss within 1 % of ln(N)."""
        is_near = self._has_ln_n and abs(loss - self.ln_n) <= _STUCK_SHARE * self.ln_n
        self._stuck = self._stuck + 1 if is_near else 0
        return self._stuck == _STUCK_STEPS


@contextmanager
def divergence_stops(lr: float) -> Iterator[None]:
    """Context manager that reports embeddings that are not finite as diverged weights.

    Raises:
        RunError: the block raised NotFiniteError; the message names the peak learning rate.
    """
    try:
        yield
    except NotFiniteError as error:
        raise RunError(f"{error}; {_lr_advice(lr)}") from None


def _lr_advice(lr: float) -> str:
    return f"the learning rate is {lr:.3g}: lower it (--lr), or raise it more slowly (--schedule.warmup-steps)"


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Measurements that show why a loss does not fall."""

    lr: float
    warmup_left: int
    """Steps until the end of the warm-up."""
    grad_norms: tuple[float, float]
    """Gradient norms of the image tower and the text tower."""
    logit_scale: float
    num_positives: float
    """Mean number of other positives that a row has in the batch."""
    spread: tuple[float, float]
    """1 minus the mean cosine similarity of the batch's image embeddings, and of its text embeddings."""
    keys: tuple[str, ...]
    captions: tuple[str, ...]


@torch.no_grad()
def diagnostics(
    model: CLIP, batch: Batch, result: StepResult, ranks: Ranks = ALONE, *, lr: float, warmup_left: int
) -> Diagnostics:
    """Measure a model after a training step, whose gradients must still be stored in its parameters.

    Args:
        model: the model that is trained.
        batch: the batch of the step.
        result: the result of this step, or of one of the steps before it.
        ranks: the ranks of the run, all of which must call it.
        lr: learning rate of the step.
        warmup_left: steps until the end of the warm-up.
    """
    counts = torch.unique(batch.positive_groups, return_counts=True)[1]
    device = model.log_logit_scale.device
    pixels = normalize(batch.pixels[:_NUM_ENCODED].to(device), model.config.pixels)
    output = model(pixels, batch.ids[:_NUM_ENCODED].to(device), batch.lengths[:_NUM_ENCODED])
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


def diagnose(measured: Diagnostics, *, ln_n: float, steps: int = _STUCK_STEPS) -> str:
    """A text that lists the usual causes of a loss that stays at ln(N). Likely causes are marked by `->`, the others by `ok`.

    Args:
        measured: measurements of the run.
        ln_n: ln(batch size).
        steps: number of steps for which the loss has stayed at ln(N).
    """
    image_norm, text_norm = measured.grad_norms
    tower, lr = "image" if image_norm == 0 else "text", measured.lr
    findings: Sequence[tuple[bool, str, str]] = (
        (
            not 2 <= measured.logit_scale <= 99,
            f"temperature {1 / measured.logit_scale:.3g} is at its limit; start at 0.07 (model.init_temperature)",
            f"temperature {1 / measured.logit_scale:.3g}: usual",
        ),
        (
            measured.warmup_left > 0 or lr > _HIGH_LR,
            f"learning rate {lr:.2g} is high; lower it (--lr)"
            if lr > _HIGH_LR
            else f"learning rate {lr:.2g} still rises for {measured.warmup_left:,} steps; set fewer (schedule.warmup_steps)",
            f"learning rate {lr:.2g}: past its warm-up; if it is above 1e-3, lower it (--lr), below 1e-5, raise it",
        ),
        (
            min(measured.grad_norms) == 0,
            f"the {tower} tower gets no gradient: it is locked (lock.{tower})",
            f"gradients reach both towers ({image_norm:.2g} images, {text_norm:.2g} texts)",
        ),
        (
            min(measured.spread) < 1e-3,
            f"all {'images' if measured.spread[0] < 1e-3 else 'texts'} of a batch have the same embedding: lower --lr, or "
            "check whether they differ at all",
            "embeddings differ from each other",
        ),
        (
            measured.num_positives > 1,
            f"captions repeat: a row has {measured.num_positives:.1f} other positives in its batch, so the least possible loss "
            "is not far below ln(N); keep them apart (--data.positives_in_batch apart)",
            "captions hardly repeat within a batch",
        ),
    )
    lines = [f"  {'->' if is_cause else 'ok'} {bad if is_cause else good}" for is_cause, bad, good in findings]
    examples = list(zip(measured.keys, measured.captions, strict=True))[:3]
    pairs = "; ".join(f"{key}: {caption!r}" for key, caption in examples)
    return "\n".join(
        [
            f"The loss has not left ln N = {ln_n:.2f} for {steps} steps: nothing is learned. Possible causes:",
            *lines,
            f"  ?? do captions belong to their images? {pairs} ({command('data', 'show')} draws more)",
            f"  ?? does the pipeline work at all? {command('train')} ... --check overfits one batch",
        ]
    )


def _spread(emb: Tensor) -> float:
    """1 minus the mean cosine similarity of all pairs of rows, for unit embeddings (B, E)."""
    return 1 - float(emb.mean(dim=0).square().sum())


def _grad_norm(module: torch.nn.Module, ranks: Ranks) -> float:
    return float(grad_norm(module.parameters(), ranks))
