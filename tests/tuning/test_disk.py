"""A study whose database is damaged, empty or gone, and a disk that is full. Trainings are played."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from diptych.cli.main import main
from diptych.core.errors import ConfigError, DiptychWarning, SaveError
from diptych.training.config import TrainConfig, write_config
from diptych.tuning import results, trial
from diptych.tuning import tune as tune_module
from diptych.tuning.results import write_results
from diptych.tuning.study import Row
from diptych.tuning.study_folder import create_study_folder, read_study
from diptych.tuning.trial import Outcome, run_trial
from diptych.tuning.tune import TuneOptions, tune
from tests.conftest import TINY_RUN
from tests.tuning.played import OUTCOME, SPACE, Silent

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
Before = Callable[[int], None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Before], None]:
    """Trials that take no time, each with a run folder; what is given is called with the number of each before it ends."""

    def use(before: Before) -> None:
        count = iter(range(1000))

        def played(
            config: TrainConfig, folder: Path, *, on_score: Callable[[int, float], None], observer: Any
        ) -> Outcome:
            del observer
            folder.mkdir(parents=True, exist_ok=True)
            before(next(count))
            score = 0.9 - config.optimizer.lr
            on_score(1, score)
            return replace(OUTCOME, score=score)

        monkeypatch.setattr(tune_module, "run_trial", played)
        monkeypatch.setattr(tune_module, "free_memory", lambda: None)

    return use


@pytest.fixture
def full_database() -> Iterator[list[bool]]:
    """SQLite's files no longer grow once the list is not empty."""
    is_full: list[bool] = []

    def limit(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {1 if is_full else 1 << 30}")
        cursor.close()

    event.listen(Pool, "checkout", limit)
    yield is_full
    event.remove(Pool, "checkout", limit)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The words of a command without its number of trials; its study lies in `tmp_path / "study"`."""
    write_config(TINY_RUN, tmp_path / "tiny.yaml")
    (tmp_path / "space.yaml").write_text("optimizer.lr: {low: 1e-3, high: 1e-2}\n", encoding="utf-8")
    files = ["--config", str(tmp_path / "tiny.yaml"), "--space", str(tmp_path / "space.yaml")]
    how = [
        "--sampler",
        "random",
        "--pruner",
        "none",
        "--repeats",
        "0",
        "--data",
        "shapes:100",
        "--out",
        str(tmp_path / "study"),
    ]
    return ["tune", *files, *how]


def _tune(folder: Path, trials: int = 3) -> list[Row]:
    create_study_folder(folder, storage=None)
    options = TuneOptions(trials=trials, pruner="none", sampler="random", repeats=0)
    return tune(SPACE, folder, options=options, observer=Silent())


def test_a_full_database_is_one_line_and_known_results_are_written(
    tmp_path: Path,
    play: Callable[[Before], None],
    full_database: list[bool],
    command: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    tried = []

    def fill(number: int) -> None:
        tried.append(number)
        if number == 4:
            full_database.append(True)

    play(fill)
    assert main([*command, "--trials", "60"]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert (
        "study.db: cannot be read or written any more (database or disk is full); repair it, or make room" in lines[0]
    )
    for name in ("trials.csv", "best_config.yaml", "best_results.json", "optimization_history.png"):
        assert (tmp_path / "study" / name).stat().st_size
    full_database.clear()
    assert main([*command, "--trials", str(len(tried))]) == 0  # The last of them is done again.
    _, found = read_study(tmp_path / "study")
    assert {row.state for row in found} == {"done"}
    assert len(found) >= 5


def test_a_database_that_is_damaged_meanwhile_is_one_line(
    tmp_path: Path, play: Callable[[Before], None], command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "study" / "study.db"

    def damage(number: int) -> None:
        if number == 2:
            database.write_bytes(os.urandom(database.stat().st_size))

    play(damage)
    assert main([*command, "--trials", "9"]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "study.db: cannot be read or written any more (file is not a database)" in lines[0]
    assert (tmp_path / "study" / "best_config.yaml").stat().st_size


def _overwrite(database: Path) -> None:
    database.write_bytes(b"no database at all" * 500)


def _tear(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(database.stat().st_size - 4096))


@pytest.mark.parametrize("damage", [_overwrite, _tear])
def test_a_damaged_database_is_refused_before_it_is_used(
    tmp_path: Path, play: Callable[[Before], None], damage: Callable[[Path], None]
) -> None:
    play(lambda _: None)
    folder = tmp_path / "study"
    _tune(folder)
    damage(folder / "study.db")
    before = (folder / "study.db").read_bytes()
    for use in (lambda: _tune(folder), lambda: read_study(folder)):
        with pytest.raises(ConfigError, match=r"study\.db: is damaged \(.+\); put a copy of it in its place"):
            use()
    assert (folder / "study.db").read_bytes() == before


@pytest.mark.parametrize("what", ["empty", "gone", "another's"])
def test_a_study_is_not_begun_anew_where_its_database_is_lost(
    tmp_path: Path, play: Callable[[Before], None], what: str
) -> None:
    play(lambda _: None)
    folder = tmp_path / "study"
    _tune(folder)
    if what == "empty":
        (folder / "study.db").write_bytes(b"")
    elif what == "gone":
        (folder / "study.db").unlink()
    else:
        _tune(tmp_path / "other")
        (tmp_path / "other" / "study.db").replace(folder / "study.db")
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"has the folders of 3 trials, but sqlite:.*study\.db holds no study of it; put back"
        ):
            _tune(folder)
    assert main(["tune", "--show", str(folder)]) == 2


def test_a_full_disk_in_a_trial_is_no_fault_of_its_settings(tmp_path: Path, play: Callable[[Before], None]) -> None:
    def fill(number: int) -> None:
        if number == 1:
            raise FULL

    play(fill)
    with pytest.raises(
        SaveError, match=r"trial-0001: cannot be written or read \(No space left on device\); repair it, or make"
    ):
        _tune(tmp_path / "study")
    found = _tune(tmp_path / "study")
    assert [row.state for row in found] == ["done"] * 3
    assert [row.number for row in found] == [0, 1, 3]  # 2 was the second start of 1.


def test_a_bundle_that_cannot_be_saved_is_no_fault_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SaveError("bundle: could not be saved")

    monkeypatch.setattr(trial, "train", fail)
    with pytest.raises(SaveError):
        run_trial(TINY_RUN, tmp_path / "run", on_score=lambda *_: None)


def test_a_full_disk_at_the_lock_is_one_line(
    tmp_path: Path, play: Callable[[Before], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise FULL

    play(lambda _: None)
    monkeypatch.setattr(tune_module, "file_lock", full)
    with pytest.raises(SaveError, match=r"study: cannot be written or read \(No space left on device\)"):
        _tune(tmp_path / "study")


def test_results_that_can_be_written_are_written(
    tmp_path: Path, play: Callable[[Before], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise FULL

    play(lambda _: None)
    folder = tmp_path / "study"
    found = _tune(folder)
    monkeypatch.setattr(results, "write_csv", full)
    monkeypatch.setattr(results, "plot_history", full)
    message = r"cannot write trials\.csv \(No space left.*\), optimization_history\.png \(No space left.*\); make room"
    with pytest.warns(DiptychWarning, match=message):
        assert write_results(folder, SPACE, found) is not None
    assert {path.name for path in folder.iterdir() if path.suffix in {".yaml", ".txt", ".json", ".png"}} == {
        "tune.yaml",
        "best_config.yaml",
        "best_hyperparameters.txt",
        "best_results.json",
        "param_importances.png",
        "parallel_coordinates.png",
    }
