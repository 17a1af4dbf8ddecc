"""The training loop: from a config to a run folder with a bundle in it. Read this file from top to bottom.

All ranks of a run execute the same code. Every few steps they agree on the elapsed time, on unreadable samples, and on whether
one of them received a stop signal. They share the encoding of validations; only rank 0 computes metrics, writes and reports.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from diptych.bundle.folder import require_bundle
from diptych.core.randomness import stable_hash
from diptych.core.signals import stop_on_signal
from diptych.cpu.memory import Growth, keep_freed_memory, return_freed_memory
from diptych.data.batches.loader import training_batches
from diptych.device.launch import joined_ranks
from diptych.training.checkpoint.manager import CheckpointManager
from diptych.training.config import TrainConfig
from diptych.training.out_of_memory import take_step
from diptych.training.parallel.clock import RunClock
from diptych.training.precision import run_precision
from diptych.training.report.diagnosis import divergence_stops
from diptych.training.report.events import Observer
from diptych.training.report.messages import describe_run, describe_start
from diptych.training.report.open_observers import open_observers
from diptych.training.report.step_reporter import StepReporter
from diptych.training.run_folder import RunResult, hold_run_folder
from diptych.training.setup import RunSetup, check_start, set_up
from diptych.training.validation import Validation, measure_split, validate


def train(
    config: TrainConfig,
    run: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    accept_changed_data: bool = False,
    observers: Sequence[Observer] = (),
) -> RunResult:
    """Train a CLIP model and write a run folder: config, events, curves, checkpoints, `bundle` and `bundle-best`.

    Processes started by torchrun train the model together; all of them must be able to access `run`.

    Args:
        config: all settings of the run.
        run: path of the run folder.
        overwrite: replace the run that the folder contains.
        resume: continue the run that the folder contains, from its newest checkpoint.
        accept_changed_data: continue even if the data has changed since that checkpoint was written.
        observers: receive each step, validation and message of the run.

    Raises:
        ConfigError: a setting contradicts another setting or the data, or the data lies in the run folder.
        DataError: the data cannot be read, or too many samples are unreadable.
        RunError: the folder or its checkpoints cannot be used, the data has changed, the loss diverges, or memory runs out.
        SaveError: the trained bundle could not be written.
        BusyError: another run is writing to the folder.
    """
    run = Path(run)
    with joined_ranks(deterministic=config.deterministic) as ranks:
        keep_freed_memory()
        check_start(config, ranks, run=None if resume else run)
        with hold_run_folder(run, overwrite=overwrite, resume=resume, ranks=ranks):
            setup = set_up(config, run, ranks, resume=resume, accept_changed_data=accept_changed_data)
            with run_precision(setup.assembly.step.precision, setup.assembly.step.device):
                return _Run(setup, observers).go()


class _Run:
    """The state of one run, and the loop over its steps."""

    def __init__(self, setup: RunSetup, observers: Sequence[Observer]) -> None:
        self.setup, self.config, self.path, self.ranks = setup, setup.config, setup.path, setup.ranks
        self.assembly, self.schedule, self.skipped = setup.assembly, setup.schedule, setup.skipped
        self.step = setup.progress.step
        self.clock = RunClock(self.ranks, elapsed_s=setup.progress.elapsed_s, every_steps=self.config.logs.every_steps)
        self.observers = open_observers(self.config, self.path, self.ranks, first_step=self.step, more=observers)
        self.manager = CheckpointManager(
            config=self.config,
            run=self.path,
            state=self.assembly.state,
            evaluated=require_bundle(self.assembly.embedder.bundle),
            ranks=self.ranks,
            progress=setup.progress,
            steps_per_epoch=self.schedule.steps_per_epoch,
            data=setup.data,
            on_message=self.observers.say,
        )
        self.reporter = StepReporter(
            config=self.config,
            model=self.assembly.model,
            ranks=self.ranks,
            observers=self.observers,
            schedule=self.schedule,
            clock=self.clock,
            is_decoded=setup.train_source.is_decoded,
        )
        size, device = self.config.batch_size, self.assembly.step.device
        self._batches = training_batches(
            setup.examples, setup.tokenizer, batch_size=size, first_step=self.step, ranks=self.ranks, device=device
        )
        self._stop_requested: Callable[[], bool] = lambda: False

    def go(self) -> RunResult:
        """Train until the schedule ends, validation stops improving, or a signal arrives."""
        source, device = self.setup.train_source, self.assembly.step.device
        lines = describe_run(self.config, self.assembly.model, source, device=device, run=self.path, ranks=self.ranks)
        for text in (*self.setup.messages, *lines):
            self.observers.say(text)
        try:
            with stop_on_signal() as self._stop_requested:
                is_finished = self._loop()
            if is_finished:
                return self._finish()
            self._save_checkpoint(must=True)
            return self._result(None)
        finally:
            self.observers.notify(lambda observer: observer.close())

    def _loop(self) -> bool:
        """Take steps, validate and save checkpoints until the run ends. Returns False if a signal stopped it."""
        growth = Growth()
        if self.step == 0:
            loss = self._validate().loss
            self.observers.say(describe_start(self.config, loss=loss, num_images=len(self.setup.val_subset)))
        next_validation = int(self._validations_due()) + 1
        while self._progress() < 1 and not self.manager.is_out_of_patience:
            if self.clock.is_stopped:
                return False
            self._take_step()
            growth.look()
            if self.clock.is_due(self.step):
                self._agree()
            is_best = False
            if self._validations_due() >= next_validation and self._progress() < 1:
                next_validation = int(self._validations_due()) + 1
                is_best = self.manager.update_best(self._validate(), self.step)
            if is_best or self.manager.is_checkpoint_due(self.step, elapsed_s=self.clock.elapsed_s):
                self._save_checkpoint()
        return True

    def _take_step(self) -> None:
        """Load the next batch, train on it, and report the step."""
        start = time.monotonic()
        batch, waited_s = self.assembly.step.stopwatch.next_batch(self._batches)
        self.skipped.note(batch.skipped)
        progress = self._progress()
        lr = self.config.optimizer.lr * self.schedule.lr_factor(self.step, progress)
        # The towers' random numbers depend only on the step, so that a resumed run draws the same ones.
        seed = stable_hash(self.config.seed, "step", self.step)
        small_px, is_first = self.schedule.small_px(progress), self.step == self.setup.progress.step
        result = take_step(self.assembly.step, batch, is_first=is_first, lr=lr, seed=seed, small_px=small_px)
        self.step += 1
        self.reporter.report(batch, result, step=self.step, lr=lr, waited_s=waited_s, took_s=time.monotonic() - start)

    def _agree(self) -> None:
        """Exchange elapsed time, stop signals and unreadable samples with the other ranks."""
        self.clock.agree(self.step, is_stopped=self._stop_requested())
        self.skipped.exchange(num_tried=self.step * self.config.batch_size)

    def _validations_due(self) -> float:
        return self.config.validation.num_due(
            progress=self._progress(), epoch=self.step / self.schedule.steps_per_epoch
        )

    def _progress(self) -> float:
        return self.schedule.progress(self.step, self.clock.elapsed_s)

    def _validate(self) -> Validation:
        config, embedder, source, ranks = self.config, self.assembly.embedder, self.setup.val_subset, self.ranks
        data, loss, size, seed = config.data, config.loss, config.batch_size, config.seed
        self.reporter.flush()
        with divergence_stops(config.optimizer.lr), self.assembly.step.stopwatch.time("evaluation"):
            return_freed_memory()
            self.assembly.refresh_eval_model()
            validation = validate(embedder, source, config=data, loss=loss, batch_size=size, seed=seed, ranks=ranks)
            return_freed_memory()
        self._agree()
        self.observers.notify(lambda observer: observer.on_validation(self.step, validation))
        self.reporter.throughput.pause()
        return validation

    def _save_checkpoint(self, *, must: bool = False) -> None:
        self.reporter.flush()
        self._agree()
        elapsed_s, skipped = self.clock.elapsed_s, self.skipped.reasons
        with self.assembly.step.stopwatch.time("checkpoints"):
            self.manager.save_checkpoint(self.step, elapsed_s=elapsed_s, skipped=skipped, must=must)
        self.reporter.throughput.pause()

    def _finish(self) -> RunResult:
        """Validate once more, save the bundle, and evaluate it on the whole validation split."""
        config, elapsed_s, bundle = self.config, self.clock.elapsed_s, self.path / "bundle"
        embedder = self.assembly.embedder
        validation = self._validate()
        self.manager.update_best(validation, self.step)
        self._save_checkpoint()
        self.manager.save_bundle(validation, bundle, self.step)
        split, metric, source = config.data.val_split, config.validation.metric, self.setup.val_source
        with divergence_stops(config.optimizer.lr), self.assembly.step.stopwatch.time("evaluation"):
            retrieval, zero_shot = measure_split(embedder, source, split=split, metric=metric, ranks=self.ranks)
        self.manager.add_split_metrics(bundle, retrieval, zero_shot)
        self.reporter.report_cut_captions(self.setup.tokenizer.context_length)
        return replace(self._result(bundle), elapsed_s=elapsed_s, retrieval=retrieval, zero_shot=zero_shot)

    def _result(self, bundle: Path | None) -> RunResult:
        return RunResult(
            run=self.path,
            bundle=bundle,
            steps=self.step,
            elapsed_s=self.clock.elapsed_s,
            num_skipped=len(self.skipped.reasons),
            data_wait=self.reporter.throughput.data_wait,
            seconds=self.assembly.step.stopwatch.total(),
            best_step=self.manager.progress.best_step,
            stopped_early=self.manager.is_out_of_patience,
        )
