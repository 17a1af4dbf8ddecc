"""What the demo leaves: an index for the page that it ends with, and commands that run."""

import os
import subprocess
from pathlib import Path

import pytest

from diptych.cli import demo as demo_module
from diptych.cli.demo import demo
from diptych.core.settings import override
from diptych.index.open_index import create_index, open_index
from diptych.inference.loaded import load
from diptych.training.config import TrainConfig
from diptych.training.run import train
from diptych.training.run_folder import RunResult
from tests.conftest import TINY_RUN

_SHORT = override(TINY_RUN, {"recipe": "demo", "schedule.steps": "1", "validation.times": "1"})


@pytest.mark.usefixtures("no_curves")
def test_it_ends_with_commands_that_run_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `diptych` is not on the path, from a folder whose name has a space, and where an earlier demo was."""

    def train_shortly(_config: TrainConfig, out: Path, *, overwrite: bool) -> RunResult:
        return train(_SHORT, out, overwrite=overwrite)

    monkeypatch.setattr(demo_module, "train_with_display", train_shortly)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    place = Path("my demo")
    train_shortly(_SHORT, place, overwrite=False)
    create_index(place / "index", dim=8, model="of the earlier demo", bundle="b").close()
    assert demo(out=place) == 0
    with open_index(place / "index") as index:
        assert (len(index), index.model) == (120, load(place / "bundle", device="cpu").identity)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    commands = lines[lines.index("Try next:") + 1 :]
    commands = [line for line in commands if line and not line.endswith(":")]
    assert len(commands) == 6
    assert commands[-1].endswith(" serve 'my demo/bundle' --index 'my demo/index'")
    for line in (commands[2], commands[4]):  # The others take longer; all begin alike.
        said = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    assert len({line.split(" ")[0] for line in commands}) == 1
