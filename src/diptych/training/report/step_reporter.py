"""Reports the steps of a run: metrics, throughput, advice on slow data, and a diagnosis of a loss that does not fall."""

import math
from dataclasses import dataclass

import torch

from diptych.data.batches.batch import Batch
from diptych.device.distributed import Ranks
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.training.config import TrainConfig
from diptych.training.optim.schedule import Schedule
from diptych.training.parallel.clock import RunClock
from diptych.training.report.diagnosis import TrainingMonitor, diagnose, diagnostics
from diptych.training.report.events import Observers, StepReport
from diptych.training.report.throughput import Throughput
from diptych.training.step import StepResult


@dataclass(kw_only=True, eq=False)
class StepReporter:
    """Reports the steps of a run to its observers."""

    config: TrainConfig
    model: CLIP
    """The model that is trained."""
    ranks: Ranks
    observers: Observers
    """Receive the reports."""
    schedule: Schedule
    clock: RunClock
    is_decoded: bool
    """Whether the source stores decoded pixels, so that packing it would not make reading faster."""

    def __post_init__(self) -> None:
        self._monitor = TrainingMonitor(self.config.batch_size, loss=self.config.loss)
        self._num_cut = 0
        self.throughput = Throughput(
            batch_size=self.config.batch_size,
            image_pixels=math.prod(height_width(self.config.model.image.image_px)),
            num_workers=self.config.data.num_workers,
            is_decoded=self.is_decoded,
        )

    def report(self, batch: Batch, result: StepResult, *, step: int, lr: float, waited_s: float, took_s: float) -> None:
        """Report a completed step. All ranks must call it.

        Args:
            batch: the batch of the step.
            result: the result of the step.
            step: number of the step, from 1.
            lr: learning rate of the step.
            waited_s: seconds of waiting for the batch.
            took_s: seconds of the whole step, including the wait.

        Raises:
            RunError: ten consecutive steps were skipped.
        """
        self._num_cut += batch.num_cut
        self.throughput.record_step(batch, waited_s=waited_s, took_s=took_s)
        elapsed = self.clock.now()
        progress = self.schedule.progress(step, elapsed)
        report = StepReport(
            step=step,
            epoch=step / self.schedule.steps_per_epoch,
            progress=progress,
            elapsed_s=elapsed,
            seconds_left=elapsed * (1 - progress) / progress if progress else math.inf,
            lr=lr,
            pairs_per_s=self.throughput.pairs_per_s,
            data_wait=self.throughput.data_wait,
            result=result,
        )
        self.observers.notify(lambda observer: observer.on_step(report))
        for message in (self.throughput.advice(), self._monitor.skipped(result, batch, step, lr=lr)):
            if message is not None:
                self.observers.say(message)
        if self._monitor.is_stuck(result.loss):
            warmup_left = max(0, self.config.schedule.warmup_steps - step)
            measured = diagnostics(self.model, batch, result, self.ranks, lr=lr, warmup_left=warmup_left)
            self.observers.say(diagnose(measured, ln_n=self._monitor.ln_n))

    def report_cut_captions(self, context_length: int) -> None:
        """Report how many captions were longer than the model's context, if any were. All ranks must call it."""
        num_cut = int(self.ranks.sum(torch.tensor(self._num_cut)))
        if num_cut:
            self.observers.say(f"{num_cut} captions were longer than {context_length} tokens and were truncated")
