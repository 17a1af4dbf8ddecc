"""The page of runs: what it is told of the run folders, and that it is told of nothing else."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.core.errors import ConfigError
from diptych.server.runs import create_runs_app, find_runs
from tests.server.site import Site, served


@pytest.fixture(scope="module")
def runs(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one in a subfolder, of another batch size and half written."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished_run, folder / "first")
    second = folder / "later" / "second"
    shutil.copytree(finished_run, second)
    shutil.rmtree(second / "bundle")
    config = (second / "config.yaml").read_text(encoding="utf-8")
    (second / "config.yaml").write_text(config.replace("batch_size: 16", "batch_size: 32"), encoding="utf-8")
    with (second / "events.jsonl").open("a", encoding="utf-8") as events:
        events.write('{"step": 11, "loss": NaN}\nno JSON\n[1]\n{"step": 12, "lo')
    (folder / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def shown(runs: Path) -> Iterator[Site]:
    with served(create_runs_app(runs)) as running:
        yield running


def test_runs_are_found(runs: Path, tmp_path: Path) -> None:
    assert list(find_runs(runs)) == ["first", "later/second"]
    assert list(find_runs(runs / "first")) == ["first"]
    with pytest.raises(ConfigError, match="holds no run"):
        find_runs(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        find_runs(tmp_path / "missing")


def test_the_list(shown: Site) -> None:
    first, second = shown.ask("GET", "/api/runs").json
    assert (first["name"], first["recipe"], first["step"], first["is_done"]) == ("first", "tiny", 10, True)
    assert (second["name"], second["is_done"]) == ("later/second", False)
    assert "samples.png" in first["pictures"]


def test_curves_settings_and_samples(shown: Site, runs: Path) -> None:
    told = shown.ask("GET", "/api/run?name=first").json
    logged = [json.loads(line) for line in (runs / "first" / "events.jsonl").read_text().splitlines()]
    losses = [[event["step"], event["elapsed_s"], event["loss"]] for event in logged if "loss" in event]
    assert told["curves"]["loss"] == losses
    assert told["curves"]["val_loss"]
    assert told["settings"]["batch_size"] == 16
    assert shown.ask("GET", "/api/run?name=later/second").json["settings"]["batch_size"] == 32
    picture = shown.ask("GET", "/api/picture?name=first&file=samples.png")
    assert picture.content == (runs / "first" / "samples.png").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/api/run?name=../first",
        "/api/run?name=missing",
        "/api/picture?name=first&file=../../secret.txt",
        "/api/picture?name=first&file=config.yaml",
        "/api/picture?name=..&file=secret.txt",
        "/page/../../runs.py",
    ],
)
def test_nothing_else_is_shown(shown: Site, path: str) -> None:
    answer = shown.ask("GET", path)
    assert answer.status == 404
    assert b"secret" not in answer.content


def test_many_points_are_thinned_out(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "long")
    lines = (json.dumps({"step": step, "elapsed_s": step / 10, "loss": 1 / step}) for step in range(1, 9001))
    (tmp_path / "long" / "events.jsonl").write_text("\n".join(lines))
    with served(create_runs_app(tmp_path)) as running:
        points = running.ask("GET", "/api/run?name=long").json["curves"]["loss"]
    assert len(points) <= 2001
    assert points[0][0] == 1
    assert points[-1][0] == 9000
