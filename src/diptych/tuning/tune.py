"""The tuning loop of one worker. Read this file from top to bottom.

Any number of workers can share a study. Each takes the next trial: one that another worker lost, a new one, or, after all
trials are over, the best settings with another seed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import Trial

from diptych.core.address import redacted, shown_address
from diptych.core.errors import BusyError, ConfigError, DiptychError, RunError, SaveError
from diptych.core.files import file_lock
from diptych.core.randomness import stable_hash
from diptych.training.config import TrainConfig
from diptych.training.report.events import Observer
from diptych.tuning.space import Space, Value
from diptych.tuning.standing import Standing
from diptych.tuning.storage import STORAGE_ERRORS, opened_storage, sqlite_url
from diptych.tuning.study import (
    SURPLUS,
    Row,
    open_study,
    quiet_optuna,
    requeue_interrupted,
    suggest,
    this_worker,
    was_taken,
)
from diptych.tuning.trial import (
    InterruptedTrialError,
    Outcome,
    TrialFailedError,
    drop_weights,
    free_memory,
    run_trial,
)

SamplerName: TypeAlias = Literal["tpe", "random", "gp", "qmc"]
PrunerName: TypeAlias = Literal["hyperband", "median", "none"]
_LONGEST_WAIT_S = 5.0
_LOCK, _LOCK_WAIT_S = ".lost-trials.lock", 60.0
_MAX_FAILURES = 3
"""Number of failed trials before the first success after which tuning stops: the settings are not the likely cause."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Settings of the search."""

    trials: int = 10
    """Number of trials with different settings, including the recipe's own."""
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "hyperband"
    repeats: int = 2
    """Number of additional seeds with which the best settings are trained."""
    storage: str | None = None
    """Address of the database; None for SQLite in the folder."""
    heartbeat_s: int = 30
    """Seconds between two heartbeats of a running trial. A trial that misses three is queued again."""


@runtime_checkable
class TuningObserver(Observer, Protocol):
    """Observer of the training runs that is also called with the state of all trials."""

    def on_rows(self, found: list[Row]) -> None:
        """Called with all trials after a trial has started or ended."""


def tune(space: Space, folder: Path, *, options: TuneOptions, observer: TuningObserver) -> list[Row]:
    """Run trials until all trials of the study are over, including those of other workers. The study is named after the folder.

    Args:
        space: the search space.
        folder: folder for the run folders of the trials. With `options.storage`, it may be a different one on each machine.
        options: settings of the search.
        observer: called with the progress of the trials.

    Returns:
        All trials.

    Raises:
        ConfigError: the database of the study cannot be reached, is damaged or missing, or the study has other settings.
        InterruptedTrialError: a signal arrived; the same call resumes the study.
        RunError: the first three trials failed.
        SaveError: the folder or the database cannot be written any more; the same call resumes the study.
    """
    url = options.storage or sqlite_url(folder)
    with quiet_optuna(), _writable(folder), opened_storage(url, heartbeat_s=options.heartbeat_s) as storage:
        _check_not_lost(storage, folder, where=shown_address(url))
        worker = _Worker(open_study(storage, folder.name, space), space, folder, options, observer)
        while True:
            if worker.has_work():
                worker.do_next()
            elif worker.is_done():
                return worker.show()
            else:
                worker.wait()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Context manager that converts an OSError to a SaveError with a short message."""
    try:
        yield
    except BrokenPipeError:  # The reader of the output has exited.
        raise
    except OSError as error:
        raise SaveError(
            f"{error.filename or folder}: cannot be written or read ({error.strerror or error}); repair it, or make room on "
            "the disk, then the same command continues"
        ) from None


def _check_not_lost(storage: RDBStorage, folder: Path, *, where: str) -> None:
    """Check that the folder does not contain trials of a study whose database was lost."""
    if folder.name in optuna.study.get_all_study_names(storage):
        return
    num_runs = sum(path.is_dir() for path in (folder / "trials").glob("trial-*"))
    if num_runs:
        raise ConfigError(
            f"{folder}: has the folders of {num_runs} trials, but {where} holds no study of it; put back a copy of the "
            "database, or begin a new study in another folder with --out"
        )


class _Worker:
    """A process that runs one trial after another."""

    def __init__(
        self, study: Study, space: Space, folder: Path, options: TuneOptions, observer: TuningObserver
    ) -> None:
        self.study, self.space, self.folder = study, space, folder
        self.options, self.observer = options, observer
        self._standing = Standing(study)
        self._with_bundle: Row | None = None

    def show(self) -> list[Row]:
        """Call the observer with the current state of all trials, and return it."""
        found = self._standing.refresh()
        self.observer.on_rows(found)
        return found

    def has_work(self) -> bool:
        """Whether there is a trial to start. After all trials are over, the best settings are queued with other seeds."""
        with file_lock(self.folder / _LOCK, wait_s=_LOCK_WAIT_S):  # Otherwise two workers might queue a trial twice.
            self._standing.requeue_dead_trials()
        found, best = self._standing.refresh(), self._standing.best
        if self._standing.has_waiting or self._standing.num_candidates < self.options.trials:
            return True
        if best is None or not self._standing.is_over:
            return False
        done = {row.seed for row in found if row.repeat_of == best.number}
        base = self.space.base.seed
        missing = [seed for seed in range(base + 1, base + 1 + self.options.repeats) if seed not in done]
        for seed in missing:
            attributes = {"repeat_of": best.number, "seed": seed, "settings": best.settings}
            self.study.enqueue_trial(best.settings, user_attrs=attributes)
        return bool(missing)

    def is_done(self) -> bool:
        """Whether all trials are over."""
        self._standing.refresh()
        return self._standing.is_over

    def wait(self) -> None:
        """Wait for other workers, and queue again the trials that they have lost."""
        time.sleep(self._pause_s)
        with file_lock(self.folder / _LOCK, wait_s=_LOCK_WAIT_S):
            optuna.storages.fail_stale_trials(self.study)
        self.show()

    def do_next(self) -> None:
        """Run the next trial until it ends."""
        self.study.sampler, self.study.pruner = self._sampler(), self._pruner()
        try:
            self.study.optimize(self._objective, n_trials=1, catch=(TrialFailedError,))
        except (InterruptedTrialError, KeyboardInterrupt, DiptychError):
            requeue_interrupted(self.study)
            raise
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            if not was_taken(self.study):
                raise
            return  # It missed so many heartbeats that another worker has taken the trial.
        free_memory()
        found = self.show()
        self._drop_weights()
        failed = [row for row in found if row.state == "failed"] if self._standing.best is None else []
        if len(failed) >= _MAX_FAILURES:
            raise RunError(f"the first {len(failed)} trials failed, the last one: {failed[-1].reason}")

    def _drop_weights(self) -> None:
        """Remove the weights of trials that have ended, except the bundle of the best trial."""
        best, ended = self._standing.best, self._standing.pop_ended()
        if self._with_bundle is not None and self._with_bundle is not best:
            ended.append(self._with_bundle)
        for row in ended:
            drop_weights(self._run_folder(row.number), keep_bundle=best is not None and row.number == best.number)
        self._with_bundle = best

    def _objective(self, trial: Trial) -> float:
        attributes = dict(trial.user_attrs)
        self._standing.refresh()
        number = self._standing.first_start(trial.number)
        trial.set_user_attr("worker", this_worker())
        is_free = "repeat_of" not in attributes and "recipe" not in attributes
        if self._standing.is_surplus(number, attributes, total=self.options.trials):
            trial.set_user_attr("reason", SURPLUS)
            raise TrialFailedError
        values = suggest(trial, self.space, known=None if is_free else attributes["settings"])
        trial.set_user_attr("settings", values)
        self.show()

        def on_score(resource: int, score: float) -> None:
            trial.report(score, resource)
            if is_free and trial.should_prune():
                raise optuna.TrialPruned

        try:
            config = self._config(values, attributes)
            outcome = self._run(config, self._run_folder(number), on_score)
        except (TrialFailedError, ConfigError) as error:  # The settings are incompatible, or training diverged.
            trial.set_user_attr("reason", str(error).removeprefix("config: "))
            raise TrialFailedError(str(error)) from None
        except (optuna.TrialPruned, InterruptedTrialError, DiptychError, *STORAGE_ERRORS):
            raise
        except OSError as error:  # Not caused by the settings, so other trials would fail as well.
            with _writable(self._run_folder(number)):
                raise error from None
        except Exception as error:
            trial.set_user_attr("reason", f"{type(error).__name__}: {' '.join(redacted(str(error)).split())[:300]}")
            raise TrialFailedError from error
        trial.set_user_attr("results", {**asdict(outcome), "folder": str(self._run_folder(number).resolve())})
        return outcome.score

    def _run(self, config: TrainConfig, folder: Path, on_score: Callable[[int, float], None]) -> Outcome:
        """Run a trial in a folder as soon as no other worker writes to it.

        A worker that missed its heartbeats, because its machine was busy or suspended, may still write to the folder. It stops
        when it next reports a score, because another worker has taken the trial.
        """
        is_first = True
        while True:
            try:
                return run_trial(config, folder, on_score=on_score, observer=self.observer)
            except BusyError as error:
                if is_first:
                    self.observer.on_message(f"{str(error).partition(';')[0]}; waiting until it stops")
                is_first = False
                time.sleep(self._pause_s)

    @property
    def _pause_s(self) -> float:
        return min(self.options.heartbeat_s, _LONGEST_WAIT_S)

    def _config(self, values: dict[str, Value], attributes: dict[str, Any]) -> TrainConfig:
        """The config of a trial. The recipe's own settings may lie outside of the space."""
        config = self.space.base if "recipe" in attributes else self.space.settings(values)
        return replace(config, seed=attributes.get("seed", config.seed))

    def _run_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"trial-{number:04d}"

    def _sampler(self) -> BaseSampler:
        """A new sampler for each trial, seeded by the number of trials, so that a resumed study continues in the same way."""
        self._standing.refresh()
        others = this_worker() if self._standing.has_running else ""
        seed = stable_hash(self.space.base.seed, "tune", self._standing.num_starts, others) % 2**32
        samplers: dict[SamplerName, Callable[[], BaseSampler]] = {
            "tpe": lambda: TPESampler(n_startup_trials=min(10, max(3, self.options.trials // 3)), seed=seed),
            "random": lambda: RandomSampler(seed=seed),
            "gp": lambda: GPSampler(seed=seed),
            # All workers share one sequence.
            "qmc": lambda: QMCSampler(seed=self.space.base.seed, warn_asynchronous_seeding=False),
        }
        return samplers[self.options.sampler]()

    def _pruner(self) -> BasePruner:
        """The pruner. Its resource is the number of validations."""
        validation = self.space.base.validation
        most: str | int = "auto" if validation.epochs is not None else validation.times
        pruners: dict[PrunerName, BasePruner] = {
            "hyperband": HyperbandPruner(min_resource=1, max_resource=most, reduction_factor=3),
            "median": MedianPruner(n_startup_trials=3, n_warmup_steps=1),
            "none": NopPruner(),
        }
        return pruners[self.options.pruner]
