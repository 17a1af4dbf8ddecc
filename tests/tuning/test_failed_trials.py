"""Settings that do not work fail their trial, with the reason, and the study draws the next one."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.cli.main import main
from diptych.core.errors import ConfigError, RunError
from diptych.core.settings import override
from diptych.training.config import write_config
from diptych.tuning.space import Dimension, Space, reduced
from diptych.tuning.study_folder import create_study_folder
from diptych.tuning.tune import TuneOptions, tune
from tests.conftest import TINY_RUN
from tests.tuning.played import Silent

pytestmark = pytest.mark.usefixtures("no_curves")

_FAST = override(TINY_RUN, {"schedule.steps": "3", "schedule.warmup_steps": "0", "validation.times": "1"})
_WIDTH = Dimension(name="model.text.width", fields=("model.text.width",), low=32, high=64, integer=True)
_HEADS = Dimension(name="model.text.heads", fields=("model.text.heads",), low=1, high=8, integer=True)


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_trial_that_diverges_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(_FAST, tmp_path / "c.yaml")
    (tmp_path / "space.yaml").write_text("optimizer.lr: {low: 1e8, high: 1e9, log: true}\n", "utf-8")
    words = ["tune", "--config", str(tmp_path / "c.yaml"), "--space", str(tmp_path / "space.yaml"), "--repeats", "0"]
    for _ in range(2):  # The same command again finds all done.
        assert main([*words, "--trials", "3", "--out", str(tmp_path / "study")]) == 0
    rows = _table(tmp_path / "study")
    assert [row["state"] for row in rows] == ["done", "failed", "failed"]
    for row in rows[1:]:
        assert "weights" in row["reason"]
        assert f"the learning rate is {float(row['optimizer.lr']):.3g}: lower it" in row["reason"]
    said = capsys.readouterr().out
    assert all(f"Trial {row['trial']} failed: " in said for row in rows[1:])


def test_settings_that_do_not_go_together_fail_alone(tmp_path: Path) -> None:
    create_study_folder(tmp_path / "study", storage=None)
    space = Space(_FAST, (_WIDTH, _HEADS))
    found = tune(
        space, tmp_path / "study", options=TuneOptions(trials=5, repeats=0, sampler="random"), observer=Silent()
    )
    assert len(found) == 5
    for row in found:
        width, heads = row.settings["model.text.width"], row.settings["model.text.heads"]
        assert isinstance(width, int)
        assert isinstance(heads, int)
        fails = width % heads != 0
        assert (row.state == "failed") == fails
        assert row.reason == (f"model.text: width {width} is not a multiple of heads {heads}" if fails else None)
    assert {row.state for row in found} >= {"failed", "done"}


def test_a_study_whose_first_trials_all_fail_stops(tmp_path: Path) -> None:
    create_study_folder(tmp_path / "study", storage=None)
    space = Space(replace(_FAST, optimizer=replace(_FAST.optimizer, lr=1e9)), (_HEADS,))
    with pytest.raises(RunError, match=r"the first 3 trials failed, the last one: .*") as caught:
        tune(space, tmp_path / "study", options=TuneOptions(trials=9, repeats=0), observer=Silent())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "ends", "says"),
    [
        ("model.text.layers", {"low": 1, "high": 3}, "takes no fractions.*add 'integer: true'"),
        ("micro_batch", {"low": 1, "high": 2}, "takes no fractions"),
        ("gradient_checkpointing", {"low": 0, "high": 1}, "takes no fractions"),
        ("model.text.layers", {"low": 1.5, "high": 3, "integer": True}, "is an integer, but goes from 1.5 to 3"),
        ("optimizer.lr", {"low": 1e-5, "high": float("inf")}, "to inf; both must be finite"),
        ("optimizer.lr", {"low": float("nan"), "high": 1}, "from nan .* both must be finite"),
    ],
)
def test_a_range_that_its_field_does_not_take_is_refused(field: str, ends: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        reduced(Space(TINY_RUN, (Dimension(name=field, fields=(field,), **ends),)), print)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["ema", "optimizer.lr", "model.text.dropout"])
def test_a_range_of_fractions_is_taken(field: str) -> None:
    dimension = Dimension(name=field, fields=(field,), low=0.1, high=0.2)
    assert reduced(Space(TINY_RUN, (dimension,)), print).dimensions == (dimension,)
