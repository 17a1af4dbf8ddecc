"""The page of runs: what it is told of the run folders, and that it is told of nothing else."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

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


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


ODD_CONFIGS: dict[str, str | bytes] = {
    "data is text": "recipe: tiny\ndata: x\n",
    "no mapping": "- 1\n",
    "no YAML": "a: [1\n",
    "no UTF-8": b"\xff\xfe\x00",
    "half a pair": 'recipe: "\\ud800"\n',
    "half a pair within": 'a: {"\\ud800": [1]}\n',
    "aliases": _bomb(),
    "deep": "a: " + "[" * 500 + "]" * 500,
    "deep mappings": "a: " + "{b: " * 100 + "1" + "}" * 100,
    "contains itself": "a: &a [*a]\n",
    "long": "a: " + "x" * (2**20),
    "large number": "a: 1" + "0" * 400,
}
ODD_EVENTS: dict[str, str | bytes] = {
    "large number": '{"step": 1, "loss": 1' + "0" * 400 + "}",
    "large step": '{"step": 1' + "0" * 400 + ', "loss": 1}',
    "half a pair": '{"step": 1, "message": "\\ud800"}',
    "half a pair as a figure": '{"step": 1, "\\ud800": 1}',
    "deep": '{"step": 1, "a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "long line": '{"step": 1, "message": "' + "a" * 2**20 + '"}',
    "many figures": json.dumps({f"figure {number}": 1 for number in range(501)}),
}


@pytest.fixture(scope="module")
def odd(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, set[str]]]:
    """Runs of all odd kinds next to a good one."""
    folder, names = tmp_path_factory.mktemp("odd"), set[str]()
    shutil.copytree(runs / "first", folder / "good")
    for file, contents in (("config.yaml", ODD_CONFIGS), ("events.jsonl", ODD_EVENTS)):
        for what, content in contents.items():
            name = f"{file[:6]} {what}"
            names.add(name)
            (folder / name).mkdir()
            for each in ("config.yaml", "events.jsonl"):
                shutil.copy(runs / "first" / each, folder / name / each)
            (folder / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    huge = folder / "huge"
    huge.mkdir()
    names.add("huge")
    shutil.copy(runs / "first" / "config.yaml", huge / "config.yaml")
    with (huge / "events.jsonl").open("wb") as hole:
        hole.truncate(2**40)  # A hole.
    with served(create_runs_app(folder)) as running:
        yield running, names


def test_odd_runs_are_listed_with_a_reason(odd: tuple[Site, set[str]]) -> None:
    site, names = odd
    told = {run["name"]: run["unreadable"] for run in site.ask("GET", "/api/runs").json}
    assert told.pop("good") is None
    whole = {name: site.ask("GET", "/api/run?" + urlencode({"name": name})).json["unreadable"] for name in names}
    assert told.keys() == names
    assert [name for name in names if not (told[name] or whole[name])] == []
    assert "data is 'x'" in told["config data is text"]
    assert "bits" in told["events large number"]
    assert "bytes; at most" in told["huge"]
    assert not any("/tmp" in (reason or "") for reason in told.values())


def test_values_that_json_has_not_are_shown_as_text(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "run")
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "run").rename(tmp_path / name)
    config = "a: .nan\nb: 2024-01-01\nc: !!set {x}\nd: [.inf, {e: 1}]\n1: 2\nf: {}\n"
    (tmp_path / name / "config.yaml").write_text(config)
    with served(create_runs_app(tmp_path)) as site:
        (run,) = site.ask("GET", "/api/runs").json
        assert run["name"] == "caf\\udce9"
        settings = site.ask("GET", "/api/run?" + urlencode({"name": run["name"]})).json["settings"]
    assert settings == {"a": "nan", "b": "2024-01-01", "c": "{'x'}", "d": ["inf", {"e": 1}], "1": 2}


def test_pages_of_other_sites_cannot_read_runs(shown: Site) -> None:
    assert shown.ask("GET", "/api/runs", headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert shown.ask("GET", "/api/runs/", headers={"Host": "elsewhere.example"}).status == 404
