"""The study: its trials, and which of them is next.

Optuna keeps them. A trial whose process died or was interrupted ends as failed without a reason; its successor has its
settings and its folder, and goes on. What a trial is beside its settings stands in its attributes.
"""

import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
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
"""The reason of a trial that no table shows: two workers began the last one at once."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial as a table shows it."""

    number: int
    """That of its first start: of its folder, too."""
    state: State
    score: float | None
    """Of its last validation; more is better."""
    settings: dict[str, Value]
    reason: str | None
    """Why it failed."""
    is_recipe: bool
    """Whether its settings are the recipe's own."""
    repeat_of: int | None
    """The trial whose settings it tries with another seed."""
    seed: int | None
    """Of a repeat."""
    seconds: float | None
    worker: str | None
    """host:process."""
    results: dict[str, Any] = field(default_factory=dict)
    """What the training ended with."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in {"done", "pruned", "failed"}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without its log lines and its warnings that parts of it may change."""
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
    """The study of this name; a new one begins with the recipe's own settings.

    Raises:
        ConfigError: it was made with another space, or other settings around it.
    """
    setup = json.loads(json.dumps(_setup(space)))
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        study.set_user_attr("setup", setup)
        own = space.own_values()
        inside = {d.name: own[d.name] for d in space.dimensions if d.holds(own[d.name])}
        study.enqueue_trial(inside, user_attrs={"recipe": True, "settings": own})
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        _check_setup(study, setup)
    return study


def _setup(space: Space) -> dict[str, Any]:
    return {
        "space": {dimension.name: asdict(dimension) for dimension in space.dimensions},
        "run": without_secrets(to_plain(space.base)),
    }


def _check_setup(study: Study, setup: Mapping[str, Any]) -> None:
    saved = study.user_attrs.get("setup")
    if saved is None:
        return  # Another worker is about to write it.
    way_out = "choose another folder with --out, or ask for what it was made with"
    for name in dict.fromkeys([*saved["space"], *setup["space"]]):
        was, now = saved["space"].get(name), setup["space"].get(name)
        if was != now:
            change = f"{name} was {_told(was)}, now it is {_told(now)}"
            raise ConfigError(f"study {study.study_name!r} was made with another space: {change}; {way_out}")
    differing = differing_settings(saved["run"], setup["run"])
    if differing:
        key, was, now = differing[0]
        raise ConfigError(f"study {study.study_name!r} was made with {key} {was}, now it is {now}; {way_out}")


def _told(dimension: Mapping[str, Any] | None) -> str:
    if dimension is None:
        return "not in it"
    return str(dimension["choices"] or f"from {dimension['low']:g} to {dimension['high']:g}")


def candidates(found: list[Row]) -> list[Row]:
    """Those that try settings, not seeds."""
    return [row for row in found if row.repeat_of is None]


def best_of(found: list[Row]) -> Row | None:
    """The candidate that ended best; of equals the first."""
    done = [row for row in candidates(found) if row.state == "done" and row.score is not None]
    return max(done, key=lambda row: (row.score, -row.number), default=None)


def origin_number(trial: FrozenTrial) -> int:
    """The number of its first start."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first


def suggest(trial: Trial, space: Space, known: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """A value of every dimension, of which all go together.

    Choices that do not go with what was drawn before are not there to draw; a draw from fewer has a name of its own, since
    Optuna wants the same choices under the same name. Values that are known are told to Optuna where the space has them.
    """
    values: dict[str, Value] = {}
    for dimension in space.dimensions:
        if known is not None and not dimension.holds(known[dimension.name]):
            values[dimension.name] = known[dimension.name]
        elif dimension.choices:
            possible = space.possible(dimension, values)
            name = dimension.name if possible == dimension.choices else f"{dimension.name} of {list(possible)}"
            values[dimension.name] = trial.suggest_categorical(name, possible)
        elif dimension.integer:
            low, high = int(dimension.low), int(dimension.high)
            values[dimension.name] = trial.suggest_int(dimension.name, low, high, log=dimension.log)
        else:
            values[dimension.name] = trial.suggest_float(
                dimension.name, dimension.low, dimension.high, log=dimension.log
            )
    return values if known is None else dict(known)


class Succession(RetryHeartbeatStaleTrialCallback):
    """Queues the successor of a lost trial, without the lost trial's worker.

    Otherwise another process would take the successor for lost, too, until its own worker is written.
    """

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Queue the successor of a trial, which is not changed."""
        trial = deepcopy(trial)
        trial.user_attrs.pop("worker", None)
        super().__call__(study, trial)


def requeue_interrupted(study: Study) -> None:
    """Queue a successor of what this process has just left, which Optuna has ended as failed."""
    left = _left(study)
    if left is not None:
        Succession()(study, left)


def was_taken(study: Study) -> bool:
    """Whether the last trial of this process was ended by another."""
    return _left(study) is not None


def _left(study: Study) -> FrozenTrial | None:
    """The last trial of this process, if it failed for no reason of its own."""
    begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    own = [trial for trial in begun if trial.user_attrs.get("worker") == this_worker()]
    is_left = own and own[-1].state == TrialState.FAIL and "reason" not in own[-1].user_attrs
    return own[-1] if is_left else None


def this_worker() -> str:
    """host:process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(worker: str) -> bool:
    """Of another machine nothing is known. This process itself runs no trial while it asks."""
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
    """The trial as a table shows it."""
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
