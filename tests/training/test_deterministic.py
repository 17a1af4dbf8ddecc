"""Runs with deterministic algorithms. On a CPU, runs are bit-equal in any case: no operation of a run may raise."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych.core.settings import override
from diptych.models.config import CLIPConfig, ConvNetConfig
from diptych.training.config import TrainConfig, read_run_config
from diptych.training.run import train
from tests.conftest import TINY_RUN
from tests.training.listener import Listener, interrupt

DETERMINISTIC = override(
    TINY_RUN,
    {
        "deterministic": True,
        "model.image.patch_dropout": 0.25,
        "model.text.dropout": 0.1,
        "micro_batch": 8,
        "ema": 0.9,
        "data.positives": "class",
        "loss.label_smoothing": 0.1,
        "schedule.steps": 6,
        "checkpoint.steps": 2,
    },
)
CONVOLUTIONS = replace(
    DETERMINISTIC,
    model=CLIPConfig(
        embed_dim=16,
        image=ConvNetConfig(image_px=32, stem_stride=2, widths=(8, 16), layers=(1, 1)),
        text=DETERMINISTIC.model.text,
    ),
    micro_batch=None,
    optimizer=replace(DETERMINISTIC.optimizer, name="muon"),
    schedule=replace(DETERMINISTIC.schedule, small_first=((0.5, 16),)),
)


def _weights(run: Path) -> bytes:
    return (run / "bundle" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("config", [DETERMINISTIC, CONVOLUTIONS], ids=["transformer", "convolutions"])
def test_two_runs_and_a_resumed_run_are_bit_equal(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    modes: list[bool] = []

    class Modes(Listener):
        def on_step(self, report: object) -> None:
            modes.append(torch.are_deterministic_algorithms_enabled())

    train(config, tmp_path / "first", observers=[Modes()])
    train(config, tmp_path / "second")
    resumed = tmp_path / "resumed"
    assert train(config, resumed, observers=[Listener(3, interrupt)]).interrupted
    train(read_run_config(resumed / "config.yaml"), resumed, resume=True)
    assert _weights(tmp_path / "first") == _weights(tmp_path / "second") == _weights(resumed)
    assert modes == [True] * 6
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_resumed_run_may_drop_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(TINY_RUN, run, observers=[Listener(3, interrupt)]).interrupted
    assert train(replace(TINY_RUN, deterministic=True), run, resume=True).steps == 10
