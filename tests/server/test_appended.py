"""Logs of runs are read once: later requests read what was appended, and a log that was changed from its start."""

import json
import os
import shutil
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych.core.errors import DiptychError, RunError
from diptych.server import appended, run_config
from diptych.server.appended import IncrementalReader
from diptych.server.run_events import RunCurves
from diptych.server.run_reader import RunReader
from diptych.server.runs import create_runs_app, find_runs
from diptych.training.report.event_file import forget_after
from tests.server.site import served


class Recorder:
    """Keeps every line, with its number."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.num_bytes = 0

    def add(self, block: bytes, *, first_line: int) -> None:
        """Take whole lines."""
        lines = block.decode().splitlines()
        self.lines += [(first_line + number, line) for number, line in enumerate(lines) if line]
        self.num_bytes += len(block)


def _event(step: int) -> str:
    return json.dumps(
        {"step": step, "elapsed_s": step / 2, "loss": 1 / step, "image_to_text": 0.5, "text_to_image": 0.5}
    )


def _log(steps: range) -> str:
    return "".join(f"{_event(step)}\n" for step in steps)


def _append(text: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)

    return write


def _recreate(path: Path) -> None:
    path.unlink()
    path.write_text(_log(range(7, 9)), "utf-8")


def _change_in_place(path: Path) -> None:
    content = path.read_text("utf-8")
    path.write_text(content.replace("0.5", "0.6"), "utf-8")
    os.utime(path, ns=(1, 1))  # The clock of a file system may be coarse.


@pytest.mark.parametrize(
    ("change", "num_read"),
    [
        (_append(""), 0),
        (_append(_log(range(10, 13))), 3),
        (_append(_event(10)[:20]), 0),
        (_append(_event(10)), 1),
        (lambda path: forget_after(path, 4), 4),
        (lambda path: path.write_text(_log(range(1, 4)), "utf-8"), 3),
        (lambda path: path.write_text(_log(range(2, 20)), "utf-8"), 18),
        (_change_in_place, 9),
        (_recreate, 2),
    ],
    ids=["same", "grown", "half a line", "no line end", "resumed", "cut", "rewritten", "changed in place", "recreated"],
)
def test_what_is_read_after_a_change(tmp_path: Path, change: Callable[[Path], object], num_read: int) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(_log(range(1, 10)), "utf-8")
    log = IncrementalReader(path, Recorder)
    first = log.read()
    before = list(first.lines)
    assert before == [(step, _event(step)) for step in range(1, 10)]
    change(path)
    again = log.read()
    expected = [line for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
    assert again.lines == list(enumerate(expected, start=1))
    assert len(again.lines) - (len(before) if again is first else 0) == num_read


def test_a_line_that_is_written_in_parts_is_taken_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("", "utf-8")
    log, whole = IncrementalReader(path, Recorder), _log(range(1, 4))
    for end in range(1, len(whole) + 1):
        path.write_text(whole[:end], "utf-8")
        assert len(log.read().lines) == whole[:end].count("}")
    assert [number for number, _ in log.read().lines] == [1, 2, 3]


def test_blocks_end_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appended, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(appended, "MAX_LINE_BYTES", 150)
    path = tmp_path / "events.jsonl"
    lines = ["x" * length for length in (1, 99, 100, 101, 150, 0, 3)]
    path.write_text("\n".join([*lines, ""]), "utf-8")
    assert IncrementalReader(path, Recorder).read().lines == [
        (n, line) for n, line in enumerate(lines, start=1) if line
    ]
    path.write_text("\n".join([*lines, "x" * 151, ""]), "utf-8")
    log = IncrementalReader(path, Recorder)
    for _ in range(2):
        with pytest.raises(RunError, match=r"events\.jsonl: line 8 is longer than 150 bytes"):
            log.read()
    path.write_text("x\n", "utf-8")
    assert log.read().lines == [(1, "x")]


@pytest.fixture
def runs(tmp_path: Path, finished_run: Path) -> Path:
    """Three runs of nine events, of which the fifth is followed by a validation."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        shutil.copy(finished_run / "config.yaml", tmp_path / name)
        validation = json.dumps({"step": 5, "val_loss": 2.5, "val_map": 0.25})
        (tmp_path / name / "events.jsonl").write_text(f"{_log(range(1, 6))}{validation}\n{_log(range(6, 10))}", "utf-8")
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the run and the file, for each file that is read."""
    names: list[str] = []

    def noted(read: Callable[[Path], object]) -> Callable[[Path], object]:
        def reads(path: Path) -> object:
            names.append(f"{path.parent.name}/{path.name}")
            return read(path)

        return reads

    monkeypatch.setattr(appended, "open_regular", noted(vars(appended)["open_regular"]))
    monkeypatch.setattr(run_config, "read_yaml", noted(vars(run_config)["read_yaml"]))
    return names


def test_a_second_listing_reads_what_changed(runs: Path, opened: list[str]) -> None:
    reader = RunReader()
    first = reader.summaries(find_runs(runs))
    assert [(run["step"], run["loss"], run["last"]) for run in first] == [
        (9, 1 / 9, {"val_loss": 2.5, "val_map": 0.25})
    ] * 3
    assert sorted(opened) == sorted(f"{run}/{file}" for run in "abc" for file in ("config.yaml", "events.jsonl"))
    opened.clear()
    assert reader.summaries(find_runs(runs)) == first
    assert opened == []
    _append(_log(range(10, 12)) + '{"step": 11, "val_loss": 1.5}\n')(runs / "b" / "events.jsonl")
    config = runs / "c" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("recipe: tiny", "recipe: other"), "utf-8")
    _, second, third = reader.summaries(find_runs(runs))
    assert (second["step"], second["elapsed_s"], second["last"]) == (11, 5.5, {"val_loss": 1.5, "val_map": 0.25})
    assert third["recipe"] == "other"
    assert opened == ["b/events.jsonl", "c/config.yaml"]


def test_curves_follow_the_log(runs: Path, opened: list[str]) -> None:
    reader, path = RunReader(), runs / "a" / "events.jsonl"
    assert len(reader.details("a", runs / "a")["curves"]["loss"]) == 9
    _append(_log(range(10, 12)) + '{"message": "saved"}\n')(path)
    opened.clear()
    told = reader.details("a", runs / "a")
    assert told["curves"]["loss"] == [(step, step / 2, 1 / step) for step in range(1, 12)]
    assert told["messages"] == ["saved"]
    assert opened == ["a/events.jsonl"] * 2  # Once for the summary, once for the curves.
    forget_after(path, 4)
    assert reader.details("a", runs / "a")["curves"]["loss"][-1] == (4, 2.0, 0.25)
    path.unlink()
    assert reader.details("a", runs / "a")["unreadable"] == "No such file or directory"
    path.write_text(_log(range(1, 3)), "utf-8")
    assert reader.details("a", runs / "a")["step"] == 2


def test_curves_that_were_asked_for_long_ago_are_dropped(runs: Path, opened: list[str]) -> None:
    reader = RunReader(max_points=70)  # A run has 9 points of each of 3 figures, and 2 of its validation: 29.
    for name in "abc":
        reader.details(name, runs / name)
    opened.clear()
    for name in "cba":
        assert len(reader.details(name, runs / name)["curves"]["loss"]) == 9
    assert opened == ["a/events.jsonl"]
    shutil.rmtree(runs / "b")
    assert [run["name"] for run in reader.summaries(find_runs(runs))] == ["a", "c"]
    assert {path.name for path in reader._runs} == {"a", "c"}


def test_an_error_in_the_middle_of_a_log_is_listed_once_it_is_known(runs: Path) -> None:
    path = runs / "a" / "events.jsonl"
    path.write_text(f'{{"figure": {2**70}}}\n{_log(range(1, 5))}', "utf-8")
    reader = RunReader()
    assert reader.summaries(find_runs(runs))[0]["step"] == 4
    reason = "events.jsonl: line 1 holds a number of 71 bits"
    assert reader.details("a", runs / "a")["unreadable"] == reason
    assert reader.summaries(find_runs(runs))[0]["unreadable"] == reason


@pytest.mark.parametrize(
    ("name", "content", "make"),
    [
        ("config.yaml", "a: [1", run_config.ConfigReader),
        ("events.jsonl", f'{{"figure": {2**70}}}\n', lambda path: IncrementalReader(path, RunCurves)),
    ],
)
def test_an_error_that_is_raised_again_does_not_grow(
    tmp_path: Path,
    name: str,
    content: str,
    make: Callable[[Path], run_config.ConfigReader | IncrementalReader[RunCurves]],
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    reader, lengths = make(tmp_path / name), list[int]()
    for _ in range(3):
        with pytest.raises(DiptychError) as caught:
            reader.read()
        lengths.append(len(list(traceback.walk_tb(caught.value.__traceback__))))
    assert lengths == [lengths[0]] * 3


def test_threads_read_each_line_once(runs: Path) -> None:
    reader, path, told = RunReader(), runs / "a" / "events.jsonl", list[int]()

    def ask() -> None:
        for _ in range(20):
            told.append(len(reader.details("a", runs / "a")["curves"]["loss"]))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(10, 60):
        _append(f"{_event(step)}\n")(path)
    for thread in threads:
        thread.join()
    assert len(told) == 60
    assert [point[0] for point in reader.details("a", runs / "a")["curves"]["loss"]] == list(range(1, 60))


def test_an_answer_that_the_browser_has_is_not_sent_again(runs: Path) -> None:
    with served(create_runs_app(runs)) as site:
        for path in ("/api/runs", "/api/run?name=a"):
            first = site.ask("GET", path)
            known = {"If-None-Match": {name.lower(): value for name, value in first.headers.items()}["etag"]}
            assert site.ask("GET", path, headers=known).status == 304
            assert site.ask("GET", path).content == first.content
        _append(_log(range(10, 11)))(runs / "a" / "events.jsonl")
        assert site.ask("GET", "/api/run?name=a", headers=known).json["step"] == 10
