"""The state of a study's trials, updated incrementally: finished trials are converted only once."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from diptych.tuning.storage import MAX_RETRIES
from diptych.tuning.study import SURPLUS, Row, Succession, best_of, is_dead, origin_number, row_of


class Standing:
    """The trials of a study as of the last `refresh`.

    If a trial was started several times, only its last start is included. Surplus trials are not included.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._over: set[int] = set()
        self._rows: dict[int, Row] = {}
        self._open: dict[int, FrozenTrial] = {}
        self._lost: dict[int, FrozenTrial] = {}
        self._retried: set[int] = set()
        self._candidates: set[int] = set()
        self._ended: dict[int, Row] = {}
        self._sorted: list[Row] | None = None
        self.num_starts = 0
        """Number of trials that the study has, counting every start."""
        self.best: Row | None = None
        """The finished candidate with the best score; the first one if several have it."""

    def refresh(self) -> list[Row]:
        """Read what changed since the last call.

        Returns:
            All trials in order. The list is not modified later.
        """
        trials = self._study.get_trials(deepcopy=False)
        self.num_starts = len(trials)
        for trial in trials:
            if trial.number not in self._over:
                self._update(trial)
        return self.rows

    def _update(self, trial: FrozenTrial) -> None:
        number = trial.number
        for earlier in RetryHeartbeatStaleTrialCallback.retry_history(trial):
            self._retried.add(earlier)
            self._remove(earlier)
        for trials in (self._open, self._lost):
            trials.pop(number, None)
        if not trial.state.is_finished():
            self._open[number] = trial
        else:
            self._over.add(number)
        if number in self._retried or trial.user_attrs.get("reason") == SURPLUS:
            self._remove(number)
            return
        if trial.state == TrialState.FAIL and "reason" not in trial.user_attrs:
            self._lost[number] = trial
        self._set_row(number, row_of(trial))

    def _set_row(self, number: int, row: Row) -> None:
        if self._rows.get(number) == row:
            return
        self._rows[number], self._sorted = row, None
        if row.repeat_of is None:
            self._candidates.add(number)
            self.best = best_of([row] if self.best is None else [self.best, row])
        if row.is_over:
            self._ended[number] = row

    def _remove(self, number: int) -> None:
        self._lost.pop(number, None)
        self._ended.pop(number, None)
        self._candidates.discard(number)
        if self._rows.pop(number, None) is not None:
            self._sorted = None

    @property
    def rows(self) -> list[Row]:
        """All trials in order."""
        if self._sorted is None:
            self._sorted = sorted(self._rows.values(), key=lambda row: row.number)
        return self._sorted

    @property
    def num_candidates(self) -> int:
        """Number of trials that are not repeats of another trial with a different seed."""
        return len(self._candidates)

    @property
    def is_over(self) -> bool:
        """Whether all trials are over."""
        return not self._open_rows()

    @property
    def has_waiting(self) -> bool:
        """Whether a trial is queued."""
        return any(row.state == "waiting" for row in self._open_rows())

    def _open_rows(self) -> list[Row]:
        return [self._rows[number] for number in self._open if number in self._rows]

    @property
    def has_running(self) -> bool:
        """Whether a trial is running in any process."""
        return any(trial.state == TrialState.RUNNING for trial in self._open.values())

    def pop_ended(self) -> list[Row]:
        """The trials that ended since the last call; the first call returns all finished trials."""
        ended, self._ended = self._ended, {}
        return list(ended.values())

    def first_start(self, number: int) -> int:
        """The number of the first start of an unfinished trial."""
        return origin_number(self._open[number])

    def is_surplus(self, number: int, attributes: Mapping[str, Any], *, total: int) -> bool:
        """Whether a trial is redundant: there are already `total` candidates, or a repeat with the same settings and seed.

        That happens if two workers start or queue a trial at the same time.

        Args:
            number: number of the first start of the trial.
            attributes: user attributes of the trial.
            total: number of candidates to try.
        """
        if "repeat_of" in attributes:
            repeat = attributes["repeat_of"], attributes["seed"]
            return any((row.repeat_of, row.seed) == repeat for row in self.rows if row.number < number)
        if "recipe" in attributes or self.num_candidates <= total:  # The trial itself is one of them.
            return False
        return sum(row.repeat_of is None and row.number < number for row in self.rows) >= total

    def requeue_dead_trials(self) -> None:
        """Queue trials again whose process on this machine has died, without waiting for missed heartbeats.

        That includes trials that a process interrupted but could not queue again, because the disk was full.
        """
        self.refresh()
        for trial in (*self._lost.values(), *self._open.values()):
            worker = trial.user_attrs.get("worker")
            if worker is None or trial.state == TrialState.WAITING or not is_dead(worker):
                continue
            if trial.state == TrialState.FAIL or _mark_failed(self._study, trial):
                Succession(max_retry=MAX_RETRIES)(self._study, trial)


def _mark_failed(study: Study, trial: FrozenTrial) -> bool:
    """Mark a trial as failed. Returns False if another process has done so."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        return False
    return True
