"""The training loop: from a config to a run folder with a bundle in it. Read this file from top to bottom.

Ranks that train together all go through it alike: what decides where it goes, the time and a signal among it, they agree on
after each step. Rank 0 alone measures, writes and speaks.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from diptych.bundle.folder import add_metrics
from diptych.core.address import without_secrets
from diptych.core.device import choose_device
from diptych.core.distributed import all_ranks
from diptych.core.errors import SaveError
from diptych.core.forks import pages_of
from diptych.core.launch import joined_ranks
from diptych.core.memory import Growth, keep_freed_memory, return_freed_memory
from diptych.core.program import command
from diptych.core.randomness import stable_hash
from diptych.core.settings import to_plain
from diptych.core.signals import stop_on_signal
from diptych.data.batches.batch import Batch
from diptych.data.batches.loader import training_batches
from diptych.data.batches.order import steps_per_epoch
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import take_few
from diptych.evaluation.encoded import SourceEncoder
from diptych.evaluation.retrieval import RetrievalReport, rank_pairs
from diptych.evaluation.zero_shot import ZeroShotReport, evaluate_zero_shot
from diptych.images.transforms import height_width
from diptych.training.checkpoint.manager import Keeper
from diptych.training.checkpoint.store import Progress, load_checkpoint
from diptych.training.config import TrainConfig, hide_secrets, write_config
from diptych.training.optim.freeze import set_training_mode
from diptych.training.optim.schedule import Schedule
from diptych.training.precision import check_precision
from diptych.training.report.diagnosis import Watch, circumstances, diagnose, divergence_stops
from diptych.training.report.events import EventLog, Observer, Observers, StepReport
from diptych.training.report.messages import what_it_does, where_it_starts
from diptych.training.report.skipped import SkippedSamples
from diptych.training.report.throughput import Pace
from diptych.training.report.trackers import Tracker
from diptych.training.run_folder import (
    CONFIG,
    SKIPPED,
    TOKENIZER,
    clear_leftovers,
    create_run_folder,
    has_begun,
    hold_run_folder,
)
from diptych.training.setup import assemble, check_start, fingerprints, open_data, starting_point, training_examples
from diptych.training.step import StepResult
from diptych.training.validation import Validation, validate


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind."""

    run: Path
    bundle: Path | None
    """The trained model; None if the run was interrupted."""
    steps: int
    elapsed_s: float
    retrieval: RetrievalReport | None
    """On the whole validation split; None if the run was interrupted."""
    zero_shot: ZeroShotReport | None
    """The same, where it is what the run is validated by."""
    num_skipped: int
    data_wait: float
    """Share of the training time that was spent waiting for data, within [0, 1]."""
    seconds: dict[str, float]
    """Where the time went: data, forward, backward, optimizer, evaluation, checkpoints; since it was resumed."""
    best_step: int | None
    """The step that `bundle-best` is of."""
    stopped_early: bool = False
    """Whether it ended because validation no longer got better."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run early. It can be resumed."""
        return self.bundle is None


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
            train_source, val_source = open_data(config)
            begun = resume and ranks.from_first(lambda: has_begun(run))
            prepared = _Run(
                config,
                run,
                train_source,
                val_source,
                resume=begun,
                accept_changed_data=accept_changed_data,
                observers=observers,
            )
            if resume and not begun:
                prepared.observers.say("It was stopped before its first checkpoint, so it starts from the beginning")
            return prepared.go()


class _Run:
    """The state of one run, and the loop over its steps."""

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        train_source: Source,
        val_source: Source,
        *,
        resume: bool,
        accept_changed_data: bool,
        observers: Sequence[Observer],
    ) -> None:
        self.ranks = all_ranks()
        device = choose_device(config.device)
        slow = check_precision(config.precision, device)
        data = fingerprints(config, train_source, val_source)
        start = starting_point(config, run if resume else None, train_source, captions_hash=data["training"].captions)
        if config.init is not None:
            config = replace(config, model=start.model.config)
        self.config, self.path, self.tokenizer = config, run, start.tokenizer
        self.train_source, self.val_source = train_source, val_source
        self._few_val = take_few(val_source, config.validation.samples)
        self.assembly = assemble(config, start.model.to(device), start.tokenizer)
        self.examples = training_examples(train_source, config, self.assembly.teacher)
        self.schedule = Schedule(config.schedule, steps_per_epoch(len(self.examples), config.batch_size))
        self.skipped = SkippedSamples(run / SKIPPED, num_samples=len(train_source), max_share=config.data.max_skipped)
        progress = Progress(step=0, elapsed_s=0.0, best_metric=-math.inf, best_step=None, skipped=())
        told: list[str] = [slow] if slow else []
        if resume:
            progress = load_checkpoint(
                run,
                self.assembly.state,
                config=config,
                tell=told.append,
                data=data,
                accept_changed_data=accept_changed_data,
            )
            self.ranks.from_first(lambda: clear_leftovers(run))
            self.ranks.from_first(lambda: hide_secrets(run / CONFIG))
            self.skipped.go_on(progress.skipped)
            if config.schedule.minutes is not None:
                told.append(
                    "A schedule by minutes goes on with the time it had left; that cannot be exact to the step."
                )
        else:
            self.ranks.from_first(self._create_folder)
        self.step, self._elapsed_s = progress.step, progress.elapsed_s
        self.observers = Observers([])
        if self.ranks.rank == 0:
            log = EventLog(run, batch_size=config.batch_size, first_step=self.step)
            others = [
                Tracker(kind, run, project=config.logs.project, config=without_secrets(to_plain(config)))
                for kind in config.logs.trackers
            ]
            self.observers = Observers([log, *others, *observers])
        for text in told:
            self.observers.say(text)
        self.keeper = Keeper(
            config,
            run,
            self.assembly.state,
            self.assembly.embedder.bundle,
            progress=progress,
            steps_per_epoch=self.schedule.steps_per_epoch,
            train_split_hash=data["training"].short,
            data=data,
            say=self.observers.say,
        )
        self.watch = Watch(config.batch_size, loss=config.loss)
        self.pace = Pace(
            batch_size=config.batch_size,
            image_pixels=math.prod(height_width(config.model.image.image_px)),
            num_workers=config.data.num_workers,
            is_decoded=train_source.is_decoded,
        )
        self._num_cut = 0
        self._started = time.monotonic() - self._elapsed_s
        self._stop = False
        self._stop_requested: Callable[[], bool] = lambda: False

    def _create_folder(self) -> None:
        create_run_folder(self.path)
        write_config(self.config, self.path / CONFIG)
        self.tokenizer.save(self.path / TOKENIZER)

    def go(self) -> RunResult:
        """Train until the schedule is done, validation no longer gets better, or a signal comes."""
        for text in what_it_does(
            self.config,
            self.assembly.model,
            self.train_source,
            device=self.assembly.embedder.device,
            run=self.path,
            ranks=self.ranks,
        ):
            self.observers.say(text)
        try:
            with stop_on_signal() as self._stop_requested:
                finished = self._loop()
            return self._finish() if finished else self._interrupt()
        finally:
            self.observers.tell(lambda observer: observer.close())

    def _loop(self) -> bool:
        config, step_of, growth = self.config, self.assembly.step, Growth()
        batches = training_batches(
            self.examples,
            self.tokenizer,
            batch_size=config.batch_size,
            first_step=self.step,
            ranks=self.ranks,
            let_go_of=pages_of(self.assembly.moved()),
        )
        if self.step == 0:
            untrained = self._validate()
            self.observers.say(where_it_starts(config, loss=untrained.loss, num_images=len(self._few_val)))
        next_validation = math.floor(self._validations_due()) + 1
        while self._progress() < 1 and not self.keeper.is_out_of_patience:
            if self._stop:
                return False
            began = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - began
            step_of.stopwatch.add("data", waited)
            self.skipped.add(self.ranks.gather_few(batch.skipped), num_tried=(self.step + 1) * config.batch_size)
            self._num_cut += batch.num_cut
            progress = self._progress()
            lr = config.optimizer.lr * self.schedule.lr_factor(self.step, progress)
            set_training_mode(self.assembly.model, config.lock)
            # What a tower draws follows from the step alone, and so outlives a resume.
            seed = stable_hash(config.seed, "step", self.step)
            result = step_of(batch, lr=lr, seed=seed, small_px=self.schedule.small_px(progress))
            self.step += 1
            self.pace.note(batch, waited_s=waited, took_s=time.monotonic() - began)
            self._report_step(result, lr)
            self._look_out(batch, result, lr)
            growth.look()
            self._agree()
            is_best = False
            if self._validations_due() >= next_validation and self._progress() < 1:
                next_validation = math.floor(self._validations_due()) + 1
                is_best = self.keeper.offer(self._validate(), self.step)
            if is_best or self.keeper.is_checkpoint_due(self.step, elapsed_s=self._elapsed_s):
                self._save_checkpoint()
        return True

    def _agree(self) -> None:
        """The time that all ranks go by, and whether one of them was told to stop."""
        own = torch.tensor([time.monotonic() - self._started, float(self._stop_requested())], dtype=torch.float64)
        self._elapsed_s, stop = self.ranks.max(own).tolist()
        self._stop = stop > 0

    def _validations_due(self) -> float:
        """How many of the regular validations lie behind."""
        validation = self.config.validation
        if validation.epochs is None:
            return self._progress() * validation.times
        return self.step / self.schedule.steps_per_epoch / validation.epochs

    def _progress(self) -> float:
        return self.schedule.progress(self.step, self._elapsed_s)

    def _report_step(self, result: StepResult, lr: float) -> None:
        elapsed = time.monotonic() - self._started
        progress = self.schedule.progress(self.step, elapsed)
        report = StepReport(
            step=self.step,
            epoch=self.step / self.schedule.steps_per_epoch,
            progress=progress,
            elapsed_s=elapsed,
            seconds_left=elapsed * (1 - progress) / progress if progress else math.inf,
            lr=lr,
            pairs_per_s=self.pace.pairs_per_s,
            data_wait=self.pace.data_wait,
            result=result,
        )
        self.observers.tell(lambda observer: observer.on_step(report))
        advice = self.pace.advice()
        if advice is not None:
            self.observers.say(advice)

    def _look_out(self, batch: Batch, result: StepResult, lr: float) -> None:
        """Say that a step was skipped, or that the loss does not move, and why that may be."""
        message = self.watch.skipped(result, batch, self.step, lr=lr)
        if message is not None:
            self.observers.say(message)
        if self.watch.is_stuck(result.loss):
            warmup_left = max(0, self.config.schedule.warmup_steps - self.step)
            seen = circumstances(self.assembly.model, batch, result, lr=lr, warmup_left=warmup_left)
            self.observers.say(diagnose(seen, ln_n=self.watch.ln_n))

    def _validate(self) -> Validation:
        config = self.config
        with divergence_stops(config.optimizer.lr), self.assembly.step.stopwatch.time("evaluation"):
            return_freed_memory()
            self.assembly.show()
            validation = self.ranks.from_first(
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
        self.pace.pause()
        return validation

    def _save_checkpoint(self, *, must: bool = False) -> None:
        with self.assembly.step.stopwatch.time("checkpoints"):
            self.keeper.save_checkpoint(self.step, elapsed_s=self._elapsed_s, skipped=self.skipped.reasons, must=must)
        self.pace.pause()

    def _interrupt(self) -> RunResult:
        self._save_checkpoint(must=True)
        return self._result(None)

    def _finish(self) -> RunResult:
        elapsed = self._elapsed_s
        validation = self._validate()
        self.keeper.offer(validation, self.step)
        self._save_checkpoint()
        bundle = self.path / "bundle"
        is_saved = self.keeper.save_bundle(validation, bundle, self.step)
        with divergence_stops(self.config.optimizer.lr), self.assembly.step.stopwatch.time("evaluation"):
            retrieval, zero_shot = self.ranks.from_first(self._measure_all)
        if not is_saved:
            raise SaveError(f"{bundle}: could not be saved; make room, then: {command('train', '--resume', self.path)}")
        metrics = {"retrieval": asdict(retrieval)} | ({"zero_shot": asdict(zero_shot)} if zero_shot else {})
        self.ranks.from_first(lambda: add_metrics(bundle, metrics))
        num_cut = int(self.ranks.sum(torch.tensor(self._num_cut)))
        if num_cut:
            self.observers.say(
                f"{num_cut} captions were longer than {self.tokenizer.context_length} tokens and lost their tail"
            )
        return replace(self._result(bundle), elapsed_s=elapsed, retrieval=retrieval, zero_shot=zero_shot)

    def _measure_all(self) -> tuple[RetrievalReport, ZeroShotReport | None]:
        """The figures on the whole validation split."""
        encoder, source, split = SourceEncoder(self.assembly.embedder), self.val_source, self.config.data.val_split
        pairs = encoder.encode_pairs(source)
        retrieval = rank_pairs(encoder, pairs, split=split).report
        if self.config.validation.metric != "zero_shot":
            return retrieval, None
        return retrieval, evaluate_zero_shot(encoder, source, split=split, images=pairs.images).report

    def _result(self, bundle: Path | None) -> RunResult:
        return RunResult(
            run=self.path,
            bundle=bundle,
            steps=self.step,
            elapsed_s=self._elapsed_s,
            retrieval=None,
            zero_shot=None,
            num_skipped=len(self.skipped.reasons),
            data_wait=self.pace.data_wait,
            seconds=self.assembly.step.stopwatch.total(),
            best_step=self.keeper.best_step,
            stopped_early=self.keeper.is_out_of_patience,
        )
