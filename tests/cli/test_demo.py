"""The demo at its shortest: what it leaves, and that the commands which it ends with run."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import diptych.recipes.demo as demo_recipe
from diptych.cli.main import main
from diptych.core.settings import override
from diptych.index.open_index import create_index, open_index
from diptych.inference.loaded import load
from tests.conftest import TINY_RUN


def test_it_ends_with_commands_that_run_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `diptych` is not on the path, and from a folder whose name has a space."""
    monkeypatch.setattr(demo_recipe, "demo", lambda: override(TINY_RUN, {"recipe": "demo", "schedule.steps": "2"}))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    run = Path("my demo")
    for _ in range(2):  # A second demo replaces the first, and its index although it is of another model.
        assert main(["demo", "--out", str(run)]) == 0
        out, _ = capsys.readouterr()
        assert "Zero-shot" in out
        with open_index(run / "index") as index:
            assert (len(index), index.model) == (120, load(run / "bundle", device="cpu").identity)
        shutil.rmtree(run / "index")
        create_index(run / "index", dim=8, model="another", bundle="b").close()
    assert (run / "search.png").is_file()
    assert len(list((run / "pictures").iterdir())) == 120
    metrics = json.loads((run / "bundle" / "config.json").read_text("utf-8"))["metrics"]
    assert {"zero_shot_val", "zero_shot_novel", "retrieval"} <= set(metrics)
    _, _, end = out.partition("Try next:\n")
    commands = [line.strip() for line in end.splitlines() if line.startswith("  ")]
    assert len(commands) == 6
    assert commands[-1].endswith(" serve 'my demo/bundle' --index 'my demo/index'")
    for line in (commands[2], commands[4]):  # The others take longer; all begin alike.
        said = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    assert len({line.split(" ")[0] for line in commands}) == 1
