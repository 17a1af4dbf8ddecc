"""Figures for trackers: what they are told, and that a run does not depend on them."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diptych.core.errors import ConfigError
from diptych.core.settings import override
from diptych.training.report.trackers import Tracker
from diptych.training.run import train
from tests.conftest import TINY_RUN

TRACKED = override(TINY_RUN, {"logs.trackers": "[trackio]", "logs.project": "shapes"})


class _Recorder:
    """In place of the package: W&B and trackio have these three calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, *, breaks_at: int | None = None) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.num_finished = 0
        self.breaks_at = breaks_at
        module = SimpleNamespace(init=self._init, log=self._log, finish=self._finish)
        monkeypatch.setitem(sys.modules, kind, module)

    def _init(self, **settings: Any) -> None:
        self.begun.append(settings)

    def _log(self, figures: dict[str, float], *, step: int) -> None:
        if step == self.breaks_at:
            raise RuntimeError("the server is gone")
        self.logged.append((step, figures))

    def _finish(self) -> None:
        self.num_finished += 1


def test_a_tracker_is_told_of_steps_and_validations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = _Recorder(monkeypatch, "trackio")
    train(TRACKED, tmp_path / "run")
    (begun,) = recorder.begun
    assert begun["project"] == "shapes"
    assert begun["name"].startswith("run-")
    assert begun["config"]["optimizer"]["lr"] == 2e-3
    assert [step for step, figures in recorder.logged if "train/loss" in figures] == [1, 5, 10]
    assert [step for step, figures in recorder.logged if "validation/loss" in figures] == [0, 5, 10]
    assert recorder.num_finished == 1


def test_a_run_goes_on_under_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = _Recorder(monkeypatch, "wandb")
    for run in ("one", "one", "two"):
        (tmp_path / run).mkdir(exist_ok=True)
        Tracker("wandb", tmp_path / run, project="p", config={}).close()
    first, again, other = recorder.begun
    assert first == again
    assert first["id"] == first["name"] != other["name"]
    assert first["resume"] == "allow"


def test_a_tracker_that_breaks_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _Recorder(monkeypatch, "trackio", breaks_at=5)
    result = train(TRACKED, tmp_path / "run")
    assert result.steps == 10
    log = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")
    assert "Tracker cannot write any more (the server is gone); the run goes on without" in log


def test_a_tracker_that_is_missing_or_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(
        ConfigError, match=r"logs.trackers has trackio, which is not installed: pip install 'diptych\[trackio\]'"
    ):
        train(TRACKED, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"logs\.trackers"):
        override(TINY_RUN, {"logs.trackers": "[mlflow]"})
