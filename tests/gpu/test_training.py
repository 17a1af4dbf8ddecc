"""A whole run on a GPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.training.run import train
from tests.conftest import TINY_RUN

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_ends_and_learns(tmp_path: Path, precision: str) -> None:
    config = replace(TINY_RUN, device="cuda", precision=precision)  # type: ignore[arg-type]
    result = train(config, tmp_path / "run")
    events = [json.loads(line) for line in (result.run / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if "loss" in event]
    assert losses[-1] < losses[0]
    assert set(result.seconds) >= {"forward", "backward", "optimizer"}
