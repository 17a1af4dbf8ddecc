"""Workers that share a study: lost trials, busy folders and trials that two of them queued."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from diptych.core.errors import BusyError
from diptych.training.config import TrainConfig
from diptych.tuning import tune as tune_module
from diptych.tuning.standing import Standing
from diptych.tuning.storage import opened_storage, sqlite_url
from diptych.tuning.study import Succession, open_study, quiet_optuna, this_worker
from diptych.tuning.study_folder import create_study_folder
from diptych.tuning.tune import TuneOptions, tune
from tests.tuning.played import SPACE, Play, Silent, scored, tuned


def test_what_another_machine_lost_is_gone_on_with(tmp_path: Path, play: Callable[[Play], list[Path]]) -> None:
    folders, folder = play(scored), tmp_path / "study"
    create_study_folder(folder, storage=None)
    with quiet_optuna(), opened_storage(sqlite_url(folder), heartbeat_s=1) as storage:
        study = open_study(storage, "study", SPACE)
        lost = study.ask()
        lost.set_user_attr("worker", "elsewhere:1")
        storage.record_heartbeat(lost._trial_id)
    options = TuneOptions(trials=1, repeats=0, heartbeat_s=1)
    (row,) = tune(SPACE, folder, options=options, observer=Silent())
    assert folders == [folder / "trials" / "trial-0000"]
    assert (row.number, row.state, row.is_recipe) == (0, "done", True)
    assert row.worker != "elsewhere:1"


def test_a_successor_never_has_the_worker_of_the_trial_that_was_lost(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    dead = f"{socket.gethostname()}:{process.pid}"
    with quiet_optuna(), opened_storage(sqlite_url(tmp_path)) as storage:
        study = open_study(storage, "study", SPACE)
        study.ask().set_user_attr("worker", dead)
        for num_lost in (1, 2):
            Standing(study).requeue_dead_trials()
            *lost, successor = study.get_trials()
            assert [trial.user_attrs["worker"] for trial in lost] == [dead] * num_lost
            assert [trial.state for trial in lost] == [TrialState.FAIL] * num_lost
            assert successor.state == TrialState.WAITING
            assert "worker" not in successor.user_attrs
            assert successor.user_attrs["recipe"] is True
            started = study.ask(), study.get_trials()[-1]
            assert started[1].user_attrs["worker"] == this_worker()  # By `ask` itself, as the sampler may take long.
            started[0].set_user_attr("worker", dead)


def test_a_worker_that_slept_leaves_its_trial_to_who_took_it(
    tmp_path: Path, play: Callable[[Play], list[Path]]
) -> None:
    folder = tmp_path / "study"
    slept: list[bool] = []

    def sleeping(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
        if not slept:  # Meanwhile another worker misses its heartbeat.
            slept.append(True)
            with opened_storage(sqlite_url(folder)) as storage:
                study = open_study(storage, "study", SPACE)
                (running,) = study.get_trials(states=(TrialState.RUNNING,))
                study.tell(running.number, state=TrialState.FAIL)
                Succession()(study, running)
            return 0.1
        return scored(config, on_score)

    folders = play(sleeping)
    found = tuned(folder, trials=2, repeats=0)
    assert [row.state for row in found] == ["done", "done"]
    assert folders[:2] == [folder / "trials" / "trial-0000"] * 2


def test_a_folder_that_another_worker_still_writes_is_waited_for(
    tmp_path: Path, play: Callable[[Play], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "_LONGEST_WAIT_S", 0.01)
    folder, starts = tmp_path / "study", iter([True, True])

    def busy(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
        if next(starts, False):
            raise BusyError("trial-0000: is being written by process 7 on box; stop it")
        return scored(config, on_score)

    folders, observer = play(busy), Silent()
    found = tuned(folder, trials=2, repeats=0, observer=observer)
    assert [row.state for row in found] == ["done", "done"]
    assert folders == [folder / "trials" / f"trial-{number:04d}" for number in (0, 0, 0, 1)]
    assert observer.messages == ["trial-0000: is being written by process 7 on box; waiting until it stops"]


def test_a_repeat_that_two_workers_queued_is_trained_once(tmp_path: Path, play: Callable[[Play], list[Path]]) -> None:
    folder, queued = tmp_path / "study", list[bool]()

    def queue_again(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
        if (
            config.seed == 1 and not queued
        ):  # Meanwhile another worker, which saw the same state, queues the same trial.
            queued.append(True)
            with opened_storage(sqlite_url(folder)) as storage:
                study = open_study(storage, "study", SPACE)
                (running,) = study.get_trials(states=(TrialState.RUNNING,))
                names = ("repeat_of", "seed", "settings")
                study.enqueue_trial({}, user_attrs={name: running.user_attrs[name] for name in names})
        return scored(config, on_score)

    folders = play(queue_again)
    found = tuned(folder, trials=2, repeats=1)
    assert [(row.repeat_of is not None, row.state) for row in found] == [(False, "done")] * 2 + [(True, "done")]
    assert len(folders) == 3
