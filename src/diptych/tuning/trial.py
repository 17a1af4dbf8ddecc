"""Runs one trial: a training run whose validation scores are reported to the study."""

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diptych.core.errors import RunError, SaveError
from diptych.evaluation.retrieval import RetrievalReport
from diptych.training.config import TrainConfig, read_run_config
from diptych.training.report.event_file import read_events
from diptych.training.report.events import Observer, StepReport
from diptych.training.run import train
from diptych.training.run_folder import CONFIG
from diptych.training.validation import Validation

_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a successful trial."""

    score: float
    """Score of the last validation; higher is better."""
    retrieval: RetrievalReport
    """Retrieval on the whole validation split."""
    steps: int
    seconds: float
    micro_batch: int | None
    """The smaller micro-batch that was used after running out of memory; None if memory was sufficient."""


class TrialFailedError(Exception):
    """A trial failed because of its settings. The study continues."""


class InterruptedTrialError(Exception):
    """A signal interrupted a trial. It can be resumed."""


def run_trial(
    config: TrainConfig,
    folder: Path,
    *,
    on_score: Callable[[int, float], None],
    observer: Observer | None = None,
) -> Outcome:
    """Train a config, or resume it if the folder contains a run with this config.

    If it runs out of memory, it starts again once, with half the micro-batch or less.

    Args:
        config: config of the run.
        folder: the run folder.
        on_score: called after each validation with its number, from 1, and its score. An exception that it raises ends the run.
        observer: another observer of the run.

    Raises:
        TrialFailedError: the run diverged, or ran out of memory twice; the message says which.
        InterruptedTrialError: a signal ended the run.
        SaveError: the results could not be written.
    """
    try:
        return _train(config, folder, on_score, observer)
    except Exception as error:
        if not _is_memory(error):
            raise
    smaller = _smaller_micro_batch(config)
    free_memory()
    if smaller is None:
        raise TrialFailedError("out of memory with micro_batch 1")
    try:
        outcome = _train(replace(config, micro_batch=smaller), folder, on_score, observer, afresh=True)
    except Exception as error:
        if not _is_memory(error):
            raise
        raise TrialFailedError(f"out of memory, also with micro_batch {smaller}") from None
    return replace(outcome, micro_batch=smaller)


def _train(
    config: TrainConfig,
    folder: Path,
    on_score: Callable[[int, float], None],
    observer: Observer | None,
    *,
    afresh: bool = False,
) -> Outcome:
    resumed = None if afresh else _resumable(config, folder)
    listener = _Listener(config, folder, on_score)
    try:
        result = train(
            resumed or config,
            folder,
            overwrite=resumed is None,
            resume=resumed is not None,
            observers=[listener, *([] if observer is None else [observer])],
        )
    except SaveError:  # Not caused by the settings.
        raise
    except RunError as error:
        raise TrialFailedError(str(error)) from None
    if result.interrupted:
        raise InterruptedTrialError
    assert result.retrieval is not None
    return Outcome(
        score=listener.score,
        retrieval=result.retrieval,
        steps=result.steps,
        seconds=result.elapsed_s,
        micro_batch=None,
    )


def _resumable(config: TrainConfig, folder: Path) -> TrainConfig | None:
    """The config of the run in the folder, if it equals `config` except for the micro-batch; otherwise None.

    A run stores the precision that it chose for `auto`, so `auto` equals any.
    """
    if not (folder / CONFIG).is_file():
        return None
    saved = read_run_config(folder / CONFIG)
    precision = config.precision if config.precision == "auto" else saved.precision
    return saved if replace(saved, micro_batch=config.micro_batch, precision=precision) == config else None


class _Listener:
    """Observer that reports the score of each validation, except that of the untrained model."""

    def __init__(self, config: TrainConfig, folder: Path, on_score: Callable[[int, float], None]) -> None:
        self._config, self._log, self._on_score = config, folder / "events.jsonl", on_score
        self.score = float("nan")

    def on_step(self, report: StepReport) -> None:
        """Do nothing."""

    def on_validation(self, step: int, validation: Validation) -> None:
        """Report the score, with the number of validations in the event log, which also counts those before a resumption."""
        self.score = validation.score(self._config.validation.metric)
        if step > 0:
            steps = {event["step"] for _, event in read_events(self._log).lines if "val_loss" in event}
            self._on_score(len(steps - {0}), self.score)

    def on_message(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def drop_weights(folder: Path, *, keep_bundle: bool) -> None:
    """Remove the checkpoints of a finished trial, and its bundle unless `keep_bundle`. Events and curves are kept."""
    for name in ("checkpoints", "bundle-best", *(() if keep_bundle else ("bundle",))):
        shutil.rmtree(folder / name, ignore_errors=True)


def free_memory() -> None:
    """Release the memory of the last trial."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS)


def _smaller_micro_batch(config: TrainConfig) -> int | None:
    """The largest divisor of the batch size that is at most half of the current micro-batch; None if that is 1."""
    at_once = config.micro_batch or config.batch_size
    return next((part for part in range(at_once // 2, 0, -1) if config.batch_size % part == 0), None)
