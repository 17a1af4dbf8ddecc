"""The trials of a study, which are stored by Optuna.

A trial whose process died or was interrupted is marked as failed without a reason. Its successor has the same settings and the
same folder, and continues it. Other properties of a trial are stored in its user attributes.
"""

import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from diptych.core.address import without_secrets
from diptych.core.errors import ConfigError
from diptych.core.settings import to_plain
from diptych.training.checkpoint.compatibility import differing_settings
from diptych.tuning.space import Space, Value

State: TypeAlias = Literal["waiting", "running", "done", "pruned", "failed"]
_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
SURPLUS = "one more than was asked for"
"""Reason of failure of a surplus trial, which no table includes: two workers started the last trial at the same time."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial, as a row of a table."""

    number: int
    """Number of its first start, which is also in the name of its folder."""
    state: State
    score: float | None
    """Score of its last validation; higher is better. None before the first validation."""
    settings: dict[str, Value]
    """Value by dimension."""
    reason: str | None
    """Why the trial failed; None if it did not."""
    is_recipe: bool
    """Whether its settings are the recipe's own."""
    repeat_of: int | None
    """The trial whose settings it repeats with another seed; None if it is not a repeat."""
    seed: int | None
    """Seed of a repeat."""
    seconds: float | None
    """Duration of its last start; None if it has not ended."""
    worker: str | None
    """Process that runs or ran it, as `host:process`."""
    results: dict[str, Any] = field(default_factory=dict)
    """Results of its training; empty if it has not ended well."""

    @property
    def is_over(self) -> bool:
        """Whether the trial has ended."""
        return self.state in {"done", "pruned", "failed"}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Context manager that suppresses Optuna's log and its warnings about experimental features."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="optuna")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_study(storage: RDBStorage, name: str, space: Space) -> Study:
    """Open the study of this name, or create it. The first trial of a new study has the recipe's own settings.

    Raises:
        ConfigError: the study was created with another space, or another base config.
    """
    dimensions = {dimension.name: asdict(dimension) for dimension in space.dimensions}
    setup = json.loads(json.dumps({"space": dimensions, "run": without_secrets(to_plain(space.base))}))
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        study.set_user_attr("setup", setup)
        own = space.own_values()
        inside = {d.name: own[d.name] for d in space.dimensions if d.contains(own[d.name])}
        study.enqueue_trial(inside, user_attrs={"recipe": True, "settings": own})
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        _check_setup(study, setup)
    return study


def _check_setup(study: Study, setup: Mapping[str, Any]) -> None:
    saved = study.user_attrs.get("setup")
    if saved is None:
        return  # Another worker is about to write it.
    way_out = "choose another folder with --out, or use its settings"
    for name in dict.fromkeys([*saved["space"], *setup["space"]]):
        was, now = saved["space"].get(name), setup["space"].get(name)
        if was != now:
            change = f"{name} was {_describe(was)}, now it is {_describe(now)}"
            raise ConfigError(f"study {study.study_name!r} was created with another space: {change}; {way_out}")
    differing = differing_settings(saved["run"], setup["run"])
    if differing:
        key, was, now = differing[0]
        raise ConfigError(f"study {study.study_name!r} was created with {key} {was}, now it is {now}; {way_out}")


def _describe(dimension: Mapping[str, Any] | None) -> str:
    if dimension is None:
        return "not in it"
    return str(dimension["choices"] or f"from {dimension['low']:g} to {dimension['high']:g}")


def candidates(found: list[Row]) -> list[Row]:
    """The trials that are not repeats of another trial with a different seed."""
    return [row for row in found if row.repeat_of is None]


def best_of(found: list[Row]) -> Row | None:
    """The finished candidate with the best score, the first one if several have it; None if none is finished."""
    done = [row for row in candidates(found) if row.state == "done" and row.score is not None]
    return max(done, key=lambda row: (row.score, -row.number), default=None)


def origin_number(trial: FrozenTrial) -> int:
    """The number of the first start of a trial."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first


def suggest(trial: Trial, space: Space, known: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """Draw a value for every dimension, so that all values are compatible.

    Choices that are incompatible with the values drawn before are excluded. Optuna requires the same choices for the same name,
    so a draw from fewer choices gets another name.

    Args:
        trial: the trial.
        space: the search space.
        known: given values of all dimensions, of which those within the space are recorded in the trial; None to draw values.
    """
    values: dict[str, Value] = {}
    for dimension in space.dimensions:
        if known is not None and not dimension.contains(known[dimension.name]):
            values[dimension.name] = known[dimension.name]
        elif dimension.choices:
            possible = space.possible(dimension, values)
            name = dimension.name if possible == dimension.choices else f"{dimension.name} of {list(possible)}"
            values[dimension.name] = trial.suggest_categorical(name, possible)
        else:
            draw: Callable[..., Value] = trial.suggest_int if dimension.integer else trial.suggest_float
            values[dimension.name] = draw(dimension.name, *dimension.ends, log=dimension.log)
    return values if known is None else dict(known)


class Succession(RetryHeartbeatStaleTrialCallback):
    """Callback that queues the successor of a lost trial, without the attribute `worker` of the lost trial.

    With it, other processes would consider the successor lost as well, until its own worker is set.
    """

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Queue the successor of a trial. The trial is not changed."""
        trial = deepcopy(trial)
        trial.user_attrs.pop("worker", None)
        super().__call__(study, trial)


def requeue_interrupted(study: Study) -> None:
    """Queue a successor of the trial that this process has just interrupted, which Optuna has marked as failed."""
    interrupted = _interrupted(study)
    if interrupted is not None:
        Succession()(study, interrupted)


def was_taken(study: Study) -> bool:
    """Whether another process has ended the last trial of this process."""
    return _interrupted(study) is not None


def _interrupted(study: Study) -> FrozenTrial | None:
    """The last trial of this process, if it is marked as failed without a reason."""
    started = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    own = [trial for trial in started if trial.user_attrs.get("worker") == this_worker()]
    is_interrupted = own and own[-1].state == TrialState.FAIL and "reason" not in own[-1].user_attrs
    return own[-1] if is_interrupted else None


def this_worker() -> str:
    """This process, as `host:process`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(worker: str) -> bool:
    """Whether a worker on this machine no longer runs its trial; False for workers on other machines.

    This process itself counts as dead, because it must not run a trial while it calls this function.
    """
    host, _, process = worker.rpartition(":")
    if host != socket.gethostname():
        return False
    if int(process) == os.getpid():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def row_of(trial: FrozenTrial) -> Row:
    """Convert a trial of Optuna to a row."""
    attrs = trial.user_attrs
    score = trial.value if trial.state == TrialState.COMPLETE else None
    if score is None and trial.intermediate_values:
        score = trial.intermediate_values[max(trial.intermediate_values)]
    return Row(
        number=origin_number(trial),
        state=_STATES[trial.state],
        score=score,
        settings=attrs.get("settings", {}),
        reason=attrs.get("reason", "its process died" if trial.state == TrialState.FAIL else None),
        is_recipe=bool(attrs.get("recipe")),
        repeat_of=attrs.get("repeat_of"),
        seed=attrs.get("seed"),
        seconds=None if trial.duration is None else trial.duration.total_seconds(),
        worker=attrs.get("worker"),
        results=attrs.get("results", {}),
    )
