"""Workers of one study: two at once, one of them killed, on SQLite and on a real PostgreSQL."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.cli.main import main
from diptych.tuning.study_folder import read_study
from tests.servers import postgresql

ROOT = Path(__file__).parents[2]
TRIALS = 4


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the study is kept; empty for the folder."""
    if request.param == "sqlite":
        yield ""
    else:
        with postgresql() as address:
            yield address


def _start(folder: Path, storage: str, *, seconds_a_step: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tuning.worker", str(folder), storage, str(TRIALS), str(seconds_a_step)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_two_workers_one_of_them_killed(tmp_path: Path, storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    said, killed_in = "", -1
    with _start(folder, storage, seconds_a_step=0.2) as victim:
        assert victim.stdout is not None
        while not (killed_in >= 0 and "step 8\n" in said):  # It has saved after the sixth.
            line = victim.stdout.readline()
            assert line, said
            said += line
            if line.startswith("running "):
                killed_in = int(line.split()[1])
        victim.send_signal(signal.SIGKILL)
    workers = [_start(folder, storage, seconds_a_step=0.02) for _ in range(2)]
    outputs = [worker.communicate(timeout=150)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    _, found = read_study(folder, storage=storage or None)
    tried = [row for row in found if row.repeat_of is None]
    assert len(tried) == TRIALS
    assert all(row.state == "done" for row in found), found
    assert sum(row.is_recipe for row in tried) == 1
    assert [row.seed for row in found if row.repeat_of is not None] == [1]
    assert len({row.worker for row in tried}) == 2
    log = folder / "trials" / f"trial-{killed_in:04d}" / "events.jsonl"
    steps = [
        event["step"] for event in map(json.loads, log.read_text(encoding="utf-8").splitlines()) if "loss" in event
    ]
    assert steps == [1, 5, 10, 15, 20, 25, 30]
    begun = sum(text.splitlines().count("step 1") for text in (said, *outputs))
    assert begun == len(found)  # The killed one went on from its checkpoint.
    assert main(["tune", "--show", str(folder), *(["--storage", storage] if storage else [])]) == 0
    assert "Trained again" in capsys.readouterr().out
