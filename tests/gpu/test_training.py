"""Whole runs on a device: they learn, wait for nothing, skip, go on after a kill, and repeat bit for bit."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.settings import override
from diptych.data.batches import loader
from diptych.data.batches.batch import Batch
from diptych.training.config import read_config, write_config
from diptych.training.run import _Run, train
from tests.conftest import TINY_RUN
from tests.gpu.makers import run_on, weights_of
from tests.training.listener import Listener

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("no_curves")]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_ends_and_learns(tmp_path: Path, device: torch.device, precision: str) -> None:
    config = replace(TINY_RUN, device=device.type, precision=precision)  # type: ignore[arg-type]
    result = train(config, tmp_path / "run")
    events = [json.loads(line) for line in (result.run / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if "loss" in event]
    assert losses[-1] < losses[0]
    assert set(result.seconds) >= {"forward", "backward", "optimizer"}


def test_auto_is_the_fastest_precision_of_the_device(tmp_path: Path, device: torch.device) -> None:
    train(run_on(device, {"precision": "auto", "schedule.steps": "2"}), tmp_path / "run")
    chosen = "fp32"
    if device.type == "cuda":
        chosen = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    assert read_config(tmp_path / "run" / "config.yaml").precision == chosen


@pytest.mark.cuda("on a CPU the host has nothing to wait for")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_between_two_log_points_the_host_waits_for_nothing(
    tmp_path: Path, device: torch.device, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch raises where the host would wait for the device. The first steps set up kernels and memory."""
    take_step, watched = _Run._take_step, []

    def taken(run: _Run) -> None:
        is_watched = run.step >= 6 and (run.step + 1) % 5 not in {0, 1}
        torch.cuda.set_sync_debug_mode("error" if is_watched else "default")
        try:
            take_step(run)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        watched.extend([run.step] if is_watched else [])

    monkeypatch.setattr(_Run, "_take_step", taken)
    changes = {"precision": precision, "schedule.steps": "15", "validation.times": "1"}
    result = train(run_on(device, changes), tmp_path / "run")
    assert result.steps == 15
    assert watched == [7, 8, 9, 12, 13, 14]


def test_a_batch_that_is_not_finite_is_skipped_and_named(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loader.training_batches

    def batches(*args: Any, **settings: Any) -> Iterator[Batch]:
        for number, batch in enumerate(load(*args, **settings)):
            yield replace(batch, pixels=torch.full_like(batch.pixels, 255)) if number == 2 else batch

    monkeypatch.setattr("diptych.training.run.training_batches", batches)
    monkeypatch.setattr(
        "diptych.training.step.normalize", lambda pixels, _config: pixels.float() / (255 - pixels.amin().float())
    )
    listener = Listener()
    train(replace(TINY_RUN, device=device.type, precision="fp32"), tmp_path / "run", observers=[listener])
    assert [report.step for report in listener.steps if report.result.skipped] == [3]
    (message,) = (text for text in listener.messages if text.startswith("step 3 skipped"))
    assert len(message.split("its samples: ")[1].split(", ")) == TINY_RUN.batch_size


def _assert_equal(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


class _PulledPlugError(Exception):
    """Interrupts a run, like a power failure."""


def _pull_the_plug() -> None:
    raise _PulledPlugError


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_and_a_resumed_one_are_equal_bit_for_bit(tmp_path: Path, device: torch.device, precision: str) -> None:
    changes = {"schedule.steps": "6", "checkpoint.steps": "2", "validation.times": "1"}
    config = run_on(device, {"precision": precision, "deterministic": "true", **changes})
    train(config, tmp_path / "whole")
    train(config, tmp_path / "again")
    with pytest.raises(_PulledPlugError):
        train(config, tmp_path / "cut", observers=[Listener(at=4, do=_pull_the_plug)])
    train(config, tmp_path / "cut", resume=True)
    _assert_equal(tmp_path / "whole", tmp_path / "again")
    _assert_equal(tmp_path / "whole", tmp_path / "cut")


def test_a_killed_process_goes_on(tmp_path: Path, device: torch.device) -> None:
    """With fp16, whose scale of the gradients is part of the checkpoint."""
    config = override(run_on(device), {"precision": "fp16"})
    write_config(config, tmp_path / "config.yaml")
    words = [str(tmp_path / "run"), str(tmp_path / "config.yaml"), "6"]
    killed = subprocess.run([sys.executable, "-m", "tests.gpu.killed", *words], cwd=ROOT, timeout=120, check=False)
    assert killed.returncode == -9
    saved = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert 4 <= saved <= 6
    listener = Listener()
    assert train(config, tmp_path / "run", resume=True, observers=[listener]).steps == 10
    assert [report.step for report in listener.steps] == list(range(saved + 1, 11))
