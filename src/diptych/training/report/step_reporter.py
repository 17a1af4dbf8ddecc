"""What a run reports of each step: figures, throughput, advice, and why the loss does not fall."""

import math

from diptych.core.distributed import Ranks
from diptych.data.batches.batch import Batch
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.training.config import TrainConfig
from diptych.training.optim.schedule import Schedule
from diptych.training.parallel.clock import RunClock
from diptych.training.report.diagnosis import TrainingMonitor, diagnose, diagnostics
from diptych.training.report.events import Observers, StepReport
from diptych.training.report.throughput import Throughput
from diptych.training.step import StepResult


class StepReporter:
    """Reports the steps of a run to its observers.

    Args:
        config: the run.
        model: the model that is trained.
        ranks: the processes that train it.
        observers: they get the reports.
        schedule: its length and learning rate.
        clock: its time.
        is_decoded: whether the source holds pixels, which packing cannot make faster.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: CLIP,
        ranks: Ranks,
        *,
        observers: Observers,
        schedule: Schedule,
        clock: RunClock,
        is_decoded: bool,
    ) -> None:
        self._model, self._ranks, self._observers = model, ranks, observers
        self._schedule, self._clock = schedule, clock
        self._warmup_steps = config.schedule.warmup_steps
        self._watch = TrainingMonitor(config.batch_size, loss=config.loss)
        self.throughput = Throughput(
            batch_size=config.batch_size,
            image_pixels=math.prod(height_width(config.model.image.image_px)),
            num_workers=config.data.num_workers,
            is_decoded=is_decoded,
        )

    def report(self, batch: Batch, result: StepResult, *, step: int, lr: float, waited_s: float, took_s: float) -> None:
        """Report a step that is done.

        Args:
            batch: what was learned from.
            result: what the step measured.
            step: its number, from 1.
            lr: learning rate.
            waited_s: seconds of waiting for the batch.
            took_s: seconds of the whole step, waiting included.

        Raises:
            RunError: ten steps in a row had to be skipped.
        """
        self.throughput.record_step(batch, waited_s=waited_s, took_s=took_s)
        elapsed = self._clock.now()
        progress = self._schedule.progress(step, elapsed)
        report = StepReport(
            step=step,
            epoch=step / self._schedule.steps_per_epoch,
            progress=progress,
            elapsed_s=elapsed,
            seconds_left=elapsed * (1 - progress) / progress if progress else math.inf,
            lr=lr,
            pairs_per_s=self.throughput.pairs_per_s,
            data_wait=self.throughput.data_wait,
            result=result,
        )
        self._observers.tell(lambda observer: observer.on_step(report))
        for message in (self.throughput.advice(), self._watch.skipped(result, batch, step, lr=lr)):
            if message is not None:
                self._observers.say(message)
        if self._watch.is_stuck(result.loss):
            warmup_left = max(0, self._warmup_steps - step)
            seen = diagnostics(self._model, batch, result, self._ranks, lr=lr, warmup_left=warmup_left)
            self._observers.say(diagnose(seen, ln_n=self._watch.ln_n))
