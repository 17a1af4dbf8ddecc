"""The training loop: from a config to a run folder with a bundle in it. Read this file from top to bottom."""

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import diptych
from diptych.bundle.folder import Bundle, add_metrics, save_bundle
from diptych.core.device import choose_device
from diptych.core.errors import DataError, RunError
from diptych.core.randomness import stable_hash
from diptych.data.loader import TrainingExamples, training_batches
from diptych.data.order import steps_per_epoch
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import split_hash, take_few
from diptych.evaluation.retrieval import RetrievalReport, evaluate_retrieval
from diptych.images.transforms import height_width
from diptych.inference.embedder import Embedder
from diptych.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from diptych.training.config import TrainConfig, write_config
from diptych.training.optimizer import build_optimizers
from diptych.training.pace import Pace
from diptych.training.prepare import open_data, starting_point
from diptych.training.report import EventLog, Observer, StepReport
from diptych.training.run_folder import CONFIG, SKIPPED, TOKENIZER, check_run_folder, create_run_folder
from diptych.training.schedule import Schedule
from diptych.training.signals import stop_on_signal
from diptych.training.state import TrainingState
from diptych.training.step import StepResult, train_step
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
    num_skipped: int
    data_wait: float
    """Share of the training time that was spent waiting for data, within [0, 1]."""

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
    observers: Sequence[Observer] = (),
) -> RunResult:
    """Train a CLIP and leave a run folder: config, events, curves, checkpoints, `bundle` and `bundle-best`.

    Args:
        config: everything that decides the run.
        run: the run's folder.
        overwrite: replace a run that the folder holds.
        resume: go on with the run that the folder holds, from its newest checkpoint.
        observers: told what happens.

    Raises:
        ConfigError: a setting contradicts another or the data.
        DataError: the data cannot be read, or too much of it is broken.
        RunError: the folder may not be used, or the loss is no longer a finite number.
    """
    run = Path(run)
    check_run_folder(run, overwrite=overwrite, resume=resume)
    train_source, val_source = open_data(config)
    return _Run(config, run, train_source, val_source, resume=resume, observers=observers).go()


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
        observers: Sequence[Observer],
    ) -> None:
        device = choose_device(config.device)
        start = starting_point(config, run, train_source, resume=resume)
        self.model, self.tokenizer = start.model.to(device), start.tokenizer
        self.model.set_gradient_checkpointing(config.gradient_checkpointing)
        if config.init is not None:
            config = replace(config, model=self.model.config)
        self.config = config
        self.path = run
        self.train_source, self.val_source = train_source, val_source
        self._few_val = take_few(val_source, config.val_samples)
        self._train_split_hash = split_hash(train_source)
        self.optimizer = build_optimizers(self.model, config.optimizer)[0]
        self.examples = TrainingExamples(
            train_source,
            config=config.data,
            augment=config.augment,
            pixels=config.model.pixels,
            image_px=config.model.image.image_px,
            seed=config.seed,
        )
        self.schedule = Schedule(config.schedule, steps_per_epoch(len(self.examples), config.batch_size))
        self.embedder = Embedder(Bundle(model=self.model, tokenizer=self.tokenizer))
        self.skipped: dict[str, str] = {}
        self.step, self.best_metric, self._elapsed_before = 0, -math.inf, 0.0
        self.best_step: int | None = None
        self._passed_over: list[str] = []
        if resume:
            self._restore(load_checkpoint(run, self._state(), config=config, tell=self._passed_over.append))
        else:
            create_run_folder(run)
            write_config(config, run / CONFIG)
            self.tokenizer.save(run / TOKENIZER)
        self.observers: list[Observer] = [EventLog(run, batch_size=config.batch_size, first_step=self.step), *observers]
        self.pace = Pace(
            batch_size=config.batch_size,
            image_pixels=math.prod(height_width(config.model.image.image_px)),
            num_workers=config.data.num_workers,
            is_decoded=train_source.is_decoded,
        )
        self._num_cut = 0

    def go(self) -> RunResult:
        """Train until the schedule is done or a signal comes."""
        self._started = time.monotonic() - self._elapsed_before
        self._saved_at = time.monotonic()
        self._tell(
            f"Training {self.config.recipe}: {len(self.train_source):,} images of {self.config.data.source}, "
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters, on {self.embedder.device}, into {self.path}"
        )
        for damaged in self._passed_over:
            self._tell(damaged)
        try:
            with stop_on_signal() as stop_requested:
                finished = self._loop(stop_requested)
            return self._finish() if finished else self._interrupt()
        finally:
            for observer in self.observers:
                observer.close()

    def _loop(self, stop_requested: Callable[[], bool]) -> bool:
        config = self.config
        batches = training_batches(self.examples, self.tokenizer, batch_size=config.batch_size, first_step=self.step)
        if self.step == 0:
            self._validate()
        next_validation = math.floor(self._progress() * config.validations) + 1
        while self._progress() < 1:
            if stop_requested():
                return False
            began = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - began
            self._count_skipped(batch.skipped)
            self._num_cut += batch.num_cut
            lr = config.optimizer.lr * self.schedule.lr_factor(self.step, self._progress())
            self.model.train()
            torch.manual_seed(stable_hash(config.seed, "step", self.step))  # What a tower draws outlives a resume.
            result = train_step(self.model, self.optimizer, batch, lr=lr, max_grad_norm=config.optimizer.max_grad_norm)
            self.step += 1
            self.pace.note(batch, waited_s=waited, took_s=time.monotonic() - began)
            self._report_step(result, lr)
            if self._progress() * config.validations >= next_validation and self._progress() < 1:
                next_validation = math.floor(self._progress() * config.validations) + 1
                self._validate()
            if time.monotonic() - self._saved_at > 60 * config.checkpoint_minutes:
                self._save_checkpoint()
        return True

    def _progress(self) -> float:
        return self.schedule.progress(self.step, self._elapsed_s())

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def _report_step(self, result: StepResult, lr: float) -> None:
        progress, elapsed = self._progress(), self._elapsed_s()
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
        for observer in self.observers:
            observer.on_step(report)
        advice = self.pace.advice()
        if advice is not None:
            self._tell(advice)

    def _validate(self) -> Validation:
        config = self.config
        validation = validate(
            self.embedder, self._few_val, config=config.data, batch_size=config.batch_size, seed=config.seed
        )
        for observer in self.observers:
            observer.on_validation(self.step, validation)
        if self.step > 0 and validation.retrieval.mean_r1 > self.best_metric:
            self.best_metric, self.best_step = validation.retrieval.mean_r1, self.step
            save_bundle(self._bundle(validation), self.path / "bundle-best")
        self.pace.pause()
        return validation

    def _count_skipped(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Note unreadable samples once each; stop when they are too many.

        The share is of the samples that were tried, so that a hopeless source is found out within a thousand.
        """
        new = {key: reason for key, reason in skipped if key not in self.skipped}
        if not new:
            return
        self.skipped.update(new)
        with (self.path / SKIPPED).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in new.items())
        tried = max((self.step + 1) * self.config.batch_size, 1000)
        share = len(self.skipped) / min(len(self.train_source), tried)
        if share > self.config.data.max_skipped:
            raise DataError(
                f"{len(self.skipped)} of {min(len(self.train_source), tried)} samples cannot be read, more than "
                f"{100 * self.config.data.max_skipped:g}% (data.max_skipped); all are listed in {self.path / SKIPPED}; the "
                f"first: {next(iter(self.skipped.values()))}"
            )

    def _save_checkpoint(self) -> None:
        progress = Progress(
            step=self.step,
            elapsed_s=self._elapsed_s(),
            best_metric=self.best_metric,
            best_step=self.best_step,
            skipped=tuple(self.skipped.items()),
        )
        try:
            save_checkpoint(self.path, self._state(), progress, config=self.config, best_step=self.best_step)
        except RunError as error:  # A full disk costs a checkpoint, not the run.
            self._tell(str(error))
        self._saved_at = time.monotonic()

    def _state(self) -> TrainingState:
        return TrainingState(model=self.model, optimizers=(self.optimizer,))

    def _restore(self, progress: Progress) -> None:
        self.step, self._elapsed_before = progress.step, progress.elapsed_s
        self.best_metric, self.best_step = progress.best_metric, progress.best_step
        self.skipped = dict(progress.skipped)

    def _interrupt(self) -> RunResult:
        self._save_checkpoint()
        return self._result(None, None)

    def _finish(self) -> RunResult:
        elapsed = self._elapsed_s()
        self._save_checkpoint()
        validation = self._validate()
        bundle = self.path / "bundle"
        save_bundle(self._bundle(validation), bundle)
        retrieval = evaluate_retrieval(self.embedder, self.val_source, split=self.config.data.val_split)
        add_metrics(bundle, {"retrieval": asdict(retrieval)})
        if self._num_cut:
            self._tell(
                f"{self._num_cut} captions were longer than {self.tokenizer.context_length} tokens and lost their tail"
            )
        return replace(self._result(bundle, retrieval), elapsed_s=elapsed)

    def _tell(self, text: str) -> None:
        for observer in self.observers:
            observer.on_message(text)

    def _result(self, bundle: Path | None, retrieval: RetrievalReport | None) -> RunResult:
        return RunResult(
            run=self.path,
            bundle=bundle,
            steps=self.step,
            elapsed_s=self._elapsed_s(),
            retrieval=retrieval,
            num_skipped=len(self.skipped),
            data_wait=self.pace.data_wait,
        )

    def _bundle(self, validation: Validation) -> Bundle:
        origin = {
            "recipe": self.config.recipe,
            **({"init": self.config.init} if self.config.init is not None else {}),
            "data": self.config.data.source,
            "train_split_hash": self._train_split_hash,
            "val_split": self.config.data.val_split,
            "val_fraction": self.config.data.val_fraction,
            "steps": self.step,
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
            "diptych": diptych.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        }
        during_training = {
            **{name: round(value, 5) for name, value in validation.figures().items()},
            "protocol": validation.retrieval.protocol,
        }
        metrics = {"during_training": during_training}
        return Bundle(model=self.model, tokenizer=self.tokenizer, metrics=metrics, origin=origin)
