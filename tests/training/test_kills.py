"""A run that is killed again and again ends as one that never was: bit for bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.states import assert_same_values

ROOT = Path(__file__).parents[2]


def _steps(run: Path) -> list[int]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    return [event["step"] for event in events if "loss" in event]


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_one_that_never_was(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.killed", str(tmp_path), "0"]
    # Workers whose session was killed hold its output open, so that this also waits for them to end.
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, *[-signal.SIGKILL] * 20, 0], done.stderr
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in ("bundle", "bundle-best"):
        ours, theirs = (load_file(run / name / "model.safetensors") for run in (killed, whole))
        assert_same_values(ours, theirs)
    assert _steps(killed) == _steps(whole)
    leftovers = [path.name for path in (*killed.iterdir(), *(killed / "checkpoints").iterdir()) if path.name[0] == "."]
    assert leftovers == []
