"""One trial: a real training whose validations are told as it goes."""

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
    """How a trial ended that ended well."""

    score: float
    """Of the last validation; more is better."""
    retrieval: RetrievalReport
    """On the whole validation split."""
    steps: int
    seconds: float
    micro_batch: int | None
    """What it was halved to, because memory was not enough; None if it was not."""


class TrialFailedError(Exception):
    """It ended badly, for a reason of its own settings: the study goes on."""


class InterruptedTrialError(Exception):
    """A signal ended it. It can be gone on with."""


def run_trial(
    config: TrainConfig,
    folder: Path,
    *,
    on_score: Callable[[int, float], None],
    observer: Observer | None = None,
) -> Outcome:
    """Train, going on with what the folder holds.

    Out of memory, half the micro-batch is tried once.

    Args:
        config: the run.
        folder: its run folder.
        on_score: told the number of each validation from 1 and its score; what it raises ends the run.
        observer: told what happens, too.

    Raises:
        TrialFailedError: it diverged, or memory was not enough twice; the message says which.
        InterruptedTrialError: a signal ended it.
        SaveError: the disk did not take what it made.
    """
    try:
        return _train(config, folder, on_score, observer)
    except Exception as error:
        if not _is_memory(error):
            raise
    smaller = _smaller_micro_batch(config)
    free_memory()
    if smaller is None:
        raise TrialFailedError("out of memory with one pair at once")
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
    begun = None if afresh else _begun(config, folder)
    listener = _Listener(config, folder, on_score)
    try:
        result = train(
            begun or config,
            folder,
            overwrite=begun is None,
            resume=begun is not None,
            observers=[listener, *([] if observer is None else [observer])],
        )
    except SaveError:  # No fault of the settings.
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


def _begun(config: TrainConfig, folder: Path) -> TrainConfig | None:
    """The run that the folder holds, if it is this one, its micro-batch halved or not."""
    if not (folder / CONFIG).is_file():
        return None
    held = read_run_config(folder / CONFIG)
    return held if replace(held, micro_batch=config.micro_batch) == config else None


class _Listener:
    """Tells the score of each validation. The untrained model's is none of the run's."""

    def __init__(self, config: TrainConfig, folder: Path, on_score: Callable[[int, float], None]) -> None:
        self._config, self._log, self._on_score = config, folder / "events.jsonl", on_score
        self.score = float("nan")

    def on_step(self, report: StepReport) -> None:
        """Nothing."""

    def on_validation(self, step: int, validation: Validation) -> None:
        """The log, which was told before and outlives a kill, knows how many there were."""
        self.score = validation.score(self._config.validation.metric)
        if step > 0:
            steps = {event["step"] for _, event in read_events(self._log).lines if "val_loss" in event}
            self._on_score(len(steps - {0}), self.score)

    def on_message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def drop_weights(folder: Path, *, keep_bundle: bool) -> None:
    """Remove a finished trial's checkpoints, and its bundle unless it is wanted; figures and curves stay."""
    for name in ("checkpoints", "bundle-best", *(() if keep_bundle else ("bundle",))):
        shutil.rmtree(folder / name, ignore_errors=True)


def free_memory() -> None:
    """What the last trial held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS)


def _smaller_micro_batch(config: TrainConfig) -> int | None:
    """The largest divisor of the batch that is at most half of what went through at once."""
    at_once = config.micro_batch or config.batch_size
    return next((part for part in range(at_once // 2, 0, -1) if config.batch_size % part == 0), None)
