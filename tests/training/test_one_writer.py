"""A run folder has one writer: the run that holds its lock."""

import json
import os
from pathlib import Path

import pytest

from diptych.core.errors import BusyError, DataError, RunError
from diptych.core.settings import override
from diptych.device.distributed import ALONE
from diptych.training.config import TrainConfig, read_config
from diptych.training.report.events import StepReport
from diptych.training.run import train
from diptych.training.run_folder import (
    CONFIG,
    LOCK,
    check_run_folder,
    clear_leftovers,
    create_run_folder,
    hold_run_folder,
)
from tests.training.listener import Listener


class Intruder(Listener):
    """Tries to overwrite and to resume the run that it observes, after its second step."""

    def __init__(self, config: TrainConfig, run: Path) -> None:
        super().__init__()
        self.config, self.run = config, run
        self.refusals: list[str] = []

    def on_step(self, report: StepReport) -> None:
        if report.step == 2:
            for overwrite in (True, False):
                with pytest.raises(BusyError) as caught:
                    train(self.config, self.run, overwrite=overwrite, resume=not overwrite)
                self.refusals.append(str(caught.value))


@pytest.mark.usefixtures("no_curves")
def test_a_live_run_can_be_neither_overwritten_nor_resumed(tiny_run: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = override(tiny_run, {"schedule.steps": "3", "validation.times": "1", "precision": "fp32"})
    intruder = Intruder(override(config, {"seed": "5"}), run)
    result = train(config, run, observers=[intruder])
    assert len(intruder.refusals) == 2
    for refusal in intruder.refusals:
        assert refusal.startswith(f"{run}: is being written by process {os.getpid()} on ")
        assert refusal.endswith("; stop it, or choose another folder with --out")
    assert result.bundle == run / "bundle"
    assert read_config(run / CONFIG) == config
    events = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    assert [event["step"] for event in events if "val_loss" in event] == [0, 3]
    with hold_run_folder(run, overwrite=True, resume=False, ranks=ALONE):
        pass  # Free again.


@pytest.mark.parametrize("is_there", [False, True])
def test_a_run_that_fails_before_it_begins_leaves_nothing(
    tiny_run: TrainConfig, tmp_path: Path, is_there: bool
) -> None:
    run = tmp_path / "run"
    if is_there:
        run.mkdir()
    with pytest.raises(DataError):
        train(override(tiny_run, {"data.source": "json:/nowhere.json"}), run)
    assert run.exists() == is_there
    assert not is_there or list(run.iterdir()) == []


def test_the_lock_of_a_killed_run_is_no_content_and_is_kept(tmp_path: Path) -> None:
    kept, part = {LOCK, f"{LOCK}.holder"}, f".{LOCK}.holder.0a1b2c3d.tmp"
    for name in (*kept, part):
        (tmp_path / name).write_text("")
    check_run_folder(tmp_path, overwrite=False, resume=False)
    (tmp_path / CONFIG).write_text("recipe: tiny")
    (tmp_path / "events.jsonl").write_text("")
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, "events.jsonl", *kept}
    (tmp_path / part).write_text("")
    create_run_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, *kept}


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"file/run: cannot be written \(Not a directory\); choose another folder"),
        hold_run_folder(tmp_path / "file" / "run", overwrite=False, resume=False, ranks=ALONE),
    ):
        pass
