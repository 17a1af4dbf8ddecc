"""Reports the steps of a run: metrics, throughput, advice on slow data, and a diagnosis of a loss that does not fall."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from diptych.data.batches.batch import Batch
from diptych.device.distributed import Ranks
from diptych.device.hardware import reads_values
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.training.config import TrainConfig
from diptych.training.optim.schedule import Schedule
from diptych.training.parallel.clock import RunClock
from diptych.training.report.diagnosis import TrainingMonitor, diagnose, diagnostics
from diptych.training.report.events import Observers, StepReport
from diptych.training.report.throughput import Throughput
from diptych.training.report.utilization import Utilization
from diptych.training.step_result import ResultCopy, StepResult


class _Step(NamedTuple):
    """A completed step that is not reported yet."""

    report: StepReport
    keys: Sequence[str]
    """The keys of its samples."""


@dataclass(kw_only=True, eq=False)
class StepReporter:
    """Reports the steps of a run to its observers.

    A CPU run reports each step at once. On a GPU, the metrics of the first step, and then of every `logs.every_steps` steps,
    are copied to the host together. They are reported after the host has queued the kernels of the next step, so that the
    device always has work. All ranks report the same steps at the same time.
    """

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
        device = self.model.log_logit_scale.device
        self._every_steps = 1 if reads_values(device) else self.config.logs.every_steps
        self._copies_later = device.type == "cuda"
        self._waiting: list[_Step] = []
        self._copied: tuple[list[_Step], ResultCopy] | None = None
        self._utilization = Utilization(self.config, device, num_ranks=self.ranks.size)
        self.throughput = Throughput(
            batch_size=self.config.batch_size,
            image_pixels=math.prod(height_width(self.config.model.image.image_px)),
            num_workers=self.config.data.workers_on(self.model.log_logit_scale.device),
            is_decoded=self.is_decoded,
        )

    def report(self, batch: Batch, result: StepResult, *, step: int, lr: float, waited_s: float, took_s: float) -> None:
        """Report a step when its result is on the host. All ranks must call it after each step.

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
        self._newest = batch
        self._num_cut += batch.num_cut
        self.throughput.record_step(batch, waited_s=waited_s, took_s=took_s)
        elapsed = self.clock.now()
        progress = self.schedule.progress(step, elapsed)
        self._utilization.record(batch, small_px=self.schedule.small_px(progress))
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
        self._waiting.append(_Step(report, batch.keys))
        self._report_copied()
        if step == 1 or step % self._every_steps == 0:
            self._copy()
            if not self._copies_later:
                self._report_copied()
        advice = self.throughput.advice()
        if advice is not None:
            self.observers.say(advice)

    def flush(self) -> None:
        """Report all steps so far. Waits for the device. All ranks must call it.

        Raises:
            RunError: ten consecutive steps were skipped.
        """
        self._report_copied()
        if self._waiting:
            self._copy()
            self._report_copied()

    def _copy(self) -> None:
        """Start the copy of the results of all waiting steps."""
        self._copied = self._waiting, ResultCopy([step.report.result for step in self._waiting])
        self._waiting = []

    def _report_copied(self) -> None:
        if self._copied is None:
            return
        (steps, copy), self._copied = self._copied, None
        results, peak_bytes = copy.wait(), self._utilization.peak_memory_bytes()
        for (report, keys), result in zip(steps, results, strict=True):
            share = self._utilization.share(report.pairs_per_s)
            self._report(replace(report, result=result, utilization=share, peak_memory_bytes=peak_bytes), keys)

    def _report(self, report: StepReport, keys: Sequence[str]) -> None:
        """Report a step whose result is on the host."""
        self.observers.notify(lambda observer: observer.on_step(report))
        result, step, lr = report.result, report.step, report.lr
        message = self._monitor.skipped(result, keys, step, lr=lr)
        if message is not None:
            self.observers.say(message)
        if self._monitor.is_stuck(result.loss):
            warmup_left = max(0, self.config.schedule.warmup_steps - step)
            measured = diagnostics(self.model, self._newest, result, self.ranks, lr=lr, warmup_left=warmup_left)
            self.observers.say(diagnose(measured, ln_n=self._monitor.ln_n))

    def report_cut_captions(self, context_length: int) -> None:
        """Report how many captions were longer than the model's context, if any were. All ranks must call it."""
        num_cut = int(self.ranks.sum(torch.tensor(self._num_cut)))
        if num_cut:
            self.observers.say(f"{num_cut} captions were longer than {context_length} tokens and were truncated")
