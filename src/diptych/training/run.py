"""The training loop: from a config to a run folder with a bundle in it. Read this file from top to bottom.

All ranks of a run execute it alike. After each step they agree on the time and on whether one of them was told to stop. Rank
0 alone measures, writes and reports.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from diptych.bundle.folder import add_metrics
from diptych.core.errors import SaveError
from diptych.core.launch import joined_ranks
from diptych.core.program import command
from diptych.core.randomness import stable_hash
from diptych.core.signals import stop_on_signal
from diptych.cpu.memory import Growth, keep_freed_memory, return_freed_memory
from diptych.data.batches.loader import training_batches
from diptych.data.sources.subset import take_few
from diptych.training.checkpoint.manager import CheckpointManager
from diptych.training.config import TrainConfig
from diptych.training.optim.freeze import set_training_mode
from diptych.training.parallel.clock import RunClock
from diptych.training.report.diagnosis import divergence_stops
from diptych.training.report.events import Observer
from diptych.training.report.messages import what_it_does, where_it_starts
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
    """Train a CLIP and leave a run folder: config, events, curves, checkpoints, `bundle` and `bundle-best`.

    Processes that torchrun started train it together; `run` must lie where all of them reach it.

    Args:
        config: everything that decides the run.
        run: the run's folder.
        overwrite: replace a run that the folder holds.
        resume: go on with the run that the folder holds, from its newest checkpoint.
        accept_changed_data: continue although the data has changed since that checkpoint was written.
        observers: told what happens.

    Raises:
        ConfigError: a setting contradicts another or the data, or the data lies in the run's folder.
        DataError: the data cannot be read, or too much of it is broken.
        RunError: the folder may not be used, no checkpoint is whole, the data has changed, or the loss is not finite any more.
        BusyError: another run writes the folder.
    """
    run = Path(run)
    with joined_ranks() as ranks:
        keep_freed_memory()
        check_start(config, ranks, run=None if resume else run)
        with hold_run_folder(run, overwrite=overwrite, resume=resume, ranks=ranks):
            setup = set_up(config, run, ranks, resume=resume, accept_changed_data=accept_changed_data)
            return _Run(setup, observers).go()


class _Run:
    """The state of one run, and the loop over its steps."""

    def __init__(self, setup: RunSetup, observers: Sequence[Observer]) -> None:
        self.setup, self.config, self.path, self.ranks = setup, setup.config, setup.path, setup.ranks
        self.assembly, self.schedule, self.skipped = setup.assembly, setup.schedule, setup.skipped
        self.step = setup.progress.step
        self.clock = RunClock(self.ranks, elapsed_s=setup.progress.elapsed_s)
        self.observers = open_observers(self.config, self.path, self.ranks, first_step=self.step, more=observers)
        self.manager = CheckpointManager(
            self.config,
            self.path,
            self.assembly.state,
            self.assembly.embedder.bundle,
            self.ranks,
            progress=setup.progress,
            steps_per_epoch=self.schedule.steps_per_epoch,
            data=setup.data,
            say=self.observers.say,
        )
        self.reporter = StepReporter(
            self.config,
            self.assembly.model,
            self.ranks,
            observers=self.observers,
            schedule=self.schedule,
            clock=self.clock,
            is_decoded=setup.train_source.is_decoded,
        )
        self._few_val = take_few(setup.val_source, self.config.validation.samples)
        self._num_cut = 0
        self._stop_requested: Callable[[], bool] = lambda: False

    def go(self) -> RunResult:
        """Train until the schedule is done, validation no longer gets better, or a signal comes."""
        source, device = self.setup.train_source, self.assembly.embedder.device
        about = what_it_does(self.config, self.assembly.model, source, device=device, run=self.path, ranks=self.ranks)
        for text in (*self.setup.messages, *about):
            self.observers.say(text)
        try:
            with stop_on_signal() as self._stop_requested:
                finished = self._loop()
            return self._finish() if finished else self._interrupt()
        finally:
            self.observers.tell(lambda observer: observer.close())

    def _loop(self) -> bool:
        """Take steps, validate and save until the run is over; False if it was told to stop."""
        config, step_of, growth = self.config, self.assembly.step, Growth()
        batches = training_batches(
            self.setup.examples,
            self.setup.tokenizer,
            batch_size=config.batch_size,
            first_step=self.step,
            ranks=self.ranks,
        )
        if self.step == 0:
            untrained = self._validate()
            self.observers.say(where_it_starts(config, loss=untrained.loss, num_images=len(self._few_val)))
        next_validation = math.floor(self._validations_due()) + 1
        while self._progress() < 1 and not self.manager.is_out_of_patience:
            if self.clock.is_stopped:
                return False
            began = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - began
            step_of.stopwatch.add("data", waited)
            self.skipped.add(self.ranks.gather_if_any(batch.skipped), num_tried=(self.step + 1) * config.batch_size)
            self._num_cut += batch.num_cut
            progress = self._progress()
            lr = config.optimizer.lr * self.schedule.lr_factor(self.step, progress)
            set_training_mode(self.assembly.model, config.lock)
            # What a tower draws depends on the step alone, so that a resumed run draws the same.
            seed = stable_hash(config.seed, "step", self.step)
            result = step_of(batch, lr=lr, seed=seed, small_px=self.schedule.small_px(progress))
            self.step += 1
            took = time.monotonic() - began
            self.reporter.report(batch, result, step=self.step, lr=lr, waited_s=waited, took_s=took)
            growth.look()
            self._agree()
            is_best = False
            if self._validations_due() >= next_validation and self._progress() < 1:
                next_validation = math.floor(self._validations_due()) + 1
                is_best = self.manager.update_best(self._validate(), self.step)
            if is_best or self.manager.is_checkpoint_due(self.step, elapsed_s=self.clock.elapsed_s):
                self._save_checkpoint()
        return True

    def _agree(self) -> None:
        self.clock.agree(is_stopped=self._stop_requested())

    def _validations_due(self) -> float:
        """Number of regular validations up to now."""
        validation = self.config.validation
        if validation.epochs is None:
            return self._progress() * validation.times
        return self.step / self.schedule.steps_per_epoch / validation.epochs

    def _progress(self) -> float:
        return self.schedule.progress(self.step, self.clock.elapsed_s)

    def _validate(self) -> Validation:
        config = self.config
        with divergence_stops(config.optimizer.lr), self.assembly.step.stopwatch.time("evaluation"):
            return_freed_memory()
            self.assembly.refresh_eval_model()
            validation = self.ranks.run_on_rank0(
                lambda: validate(
                    self.assembly.embedder,
                    self._few_val,
                    config=config.data,
                    loss=config.loss,
                    batch_size=config.batch_size,
                    seed=config.seed,
                )
            )
            return_freed_memory()
        self._agree()
        step = self.step
        self.observers.tell(lambda observer: observer.on_validation(step, validation))
        self.reporter.throughput.pause()
        return validation

    def _save_checkpoint(self, *, must: bool = False) -> None:
        elapsed, skipped = self.clock.elapsed_s, self.skipped.reasons
        with self.assembly.step.stopwatch.time("checkpoints"):
            self.manager.save_checkpoint(self.step, elapsed_s=elapsed, skipped=skipped, must=must)
        self.reporter.throughput.pause()

    def _interrupt(self) -> RunResult:
        self._save_checkpoint(must=True)
        return self._result(None)

    def _finish(self) -> RunResult:
        """Validate once more, save the bundle, and measure it on the whole validation split."""
        config, elapsed, bundle = self.config, self.clock.elapsed_s, self.path / "bundle"
        validation = self._validate()
        self.manager.update_best(validation, self.step)
        self._save_checkpoint()
        is_saved = self.manager.save_bundle(validation, bundle, self.step)
        split, metric, source = config.data.val_split, config.validation.metric, self.setup.val_source
        with divergence_stops(config.optimizer.lr), self.assembly.step.stopwatch.time("evaluation"):
            retrieval, zero_shot = self.ranks.run_on_rank0(
                lambda: measure_split(self.assembly.embedder, source, split=split, metric=metric)
            )
        if not is_saved:
            raise SaveError(f"{bundle}: could not be saved; make room, then: {command('train', '--resume', self.path)}")
        metrics = {"retrieval": asdict(retrieval)} | ({"zero_shot": asdict(zero_shot)} if zero_shot else {})
        self.ranks.run_on_rank0(lambda: add_metrics(bundle, metrics))
        num_cut, length = int(self.ranks.sum(torch.tensor(self._num_cut))), self.setup.tokenizer.context_length
        if num_cut:
            self.observers.say(f"{num_cut} captions were longer than {length} tokens and lost their tail")
        return replace(self._result(bundle), elapsed_s=elapsed, retrieval=retrieval, zero_shot=zero_shot)

    def _result(self, bundle: Path | None) -> RunResult:
        return RunResult(
            run=self.path,
            bundle=bundle,
            steps=self.step,
            elapsed_s=self.clock.elapsed_s,
            retrieval=None,
            zero_shot=None,
            num_skipped=len(self.skipped.reasons),
            data_wait=self.reporter.throughput.data_wait,
            seconds=self.assembly.step.stopwatch.total(),
            best_step=self.manager.best_step,
            stopped_early=self.manager.is_out_of_patience,
        )
