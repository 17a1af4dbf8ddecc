"""Results, pictures and tables of studies of many trials."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from diptych.cli import tune_display
from diptych.cli.main import main
from diptych.cli.tune_display import print_study
from diptych.training.config import TrainConfig, write_config
from diptych.training.validation import Metric
from diptych.tuning import results
from diptych.tuning.plots import plot_history, plot_parallel
from diptych.tuning.study import Row
from tests.conftest import TINY_RUN
from tests.tuning.played import SPACE, Play, scored


def _rows(num: int) -> list[Row]:
    """Trials of which the best is the second; every fifth was pruned."""
    return [
        Row(
            number=number,
            state="pruned" if number % 5 == 4 else "done",
            score=-1.0 if number == 1 else -2.0 - (number * 7 % 13),
            settings={"lr": 1e-4 + 1e-6 * number, "batch_size": 8 if number % 2 else 32},
            reason=None,
            is_recipe=number == 0,
            repeat_of=None,
            seed=None,
            seconds=1.0,
            worker="box:1",
        )
        for number in range(num)
    ]


def _spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    whole = getattr(owner, name)

    def called(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return whole(*args, **options)

    monkeypatch.setattr(owner, name, called)
    return calls


def test_lines_of_trials_are_drawn_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, num_calls = _spy(monkeypatch, Axes, "plot"), []
    collections = _spy(monkeypatch, Axes, "add_collection")
    for num in (0, 10, 40):
        calls.clear()
        plot_parallel(_rows(num), SPACE, "loss", tmp_path / "plot.png")
        num_calls.append(len(calls))
    assert num_calls[1] == num_calls[2] == num_calls[0]
    lines = collections[-1][1]
    assert len(lines.get_segments()) == 32
    assert list(lines.get_linewidths()) == [1.2] * 31 + [3]  # The best is drawn last.
    assert lines.get_segments()[-1][0][0] == 0
    assert lines.get_segments()[-1][-1].tolist() == [2, 0]  # It has the lowest loss.


@pytest.mark.parametrize(("metric", "expected"), [("loss", [2.0, 1.0, 1.0, 1.0]), ("map", [-200, -100, -100, -100])])
def test_the_best_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: Metric, expected: list[float]
) -> None:
    calls = _spy(monkeypatch, Axes, "step")
    plot_history(_rows(5), metric, tmp_path / "plot.png")
    ((_, numbers, best),) = calls
    assert (numbers, best) == ([0, 1, 2, 3], expected)


def test_importances_are_computed_from_some_of_many_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_MAX_IMPORTANCE_TRIALS", 10)
    calls = _spy(monkeypatch, results, "create_trial")
    for plot in ("plot_history", "plot_importances", "plot_parallel"):
        monkeypatch.setattr(results, plot, lambda *_: None)
    assert results.write_results(tmp_path, SPACE, _rows(31)) is not None
    told = json.loads((tmp_path / "best_results.json").read_text("utf-8"))
    assert told["importances"].keys() == {"lr", "batch_size"}
    assert len(calls) == 9  # Of 25 that are done every third.


def test_a_long_table_lists_the_best_and_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = _spy(monkeypatch, tune_display, "print_table")
    print_study(SPACE, _rows(100))
    assert len(tables.pop()[2]) == 100
    assert "not listed" not in capsys.readouterr().out
    found = _rows(1000)
    print_study(SPACE, found)
    ((_, _, cells),) = tables
    numbers = [int(row[0].split()[0]) for row in cells]
    done = [row for row in found if row.state == "done"]
    best = sorted(done, key=lambda row: -(row.score or 0))[:50]
    assert numbers == sorted({0, *(row.number for row in best), *range(950, 1000)})
    assert f"{1000 - len(numbers)} others, neither among the best nor among the last" in capsys.readouterr().out


def test_a_study_that_is_stopped_has_its_results(tmp_path: Path, play: Callable[[Play], list[Path]]) -> None:
    starts = iter(range(9))

    def stop(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
        if next(starts) == 2:
            raise KeyboardInterrupt
        return scored(config, on_score)

    play(stop)
    write_config(TINY_RUN, tmp_path / "tiny.yaml")
    (tmp_path / "space.yaml").write_text("optimizer.lr: {low: 1e-3, high: 1e-2}\n", encoding="utf-8")
    files = ["--config", str(tmp_path / "tiny.yaml"), "--space", str(tmp_path / "space.yaml")]
    assert main(["tune", *files, "--data", "shapes:100", "--sampler", "random", "--out", str(tmp_path / "study")]) == 0
    with (tmp_path / "study" / "trials.csv").open(encoding="utf-8") as file:
        assert [row["state"] for row in csv.DictReader(file)][:2] == ["done", "done"]
    assert (tmp_path / "study" / "best_config.yaml").stat().st_size
