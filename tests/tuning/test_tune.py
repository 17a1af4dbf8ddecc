"""A study from its first trial to its results, with trainings that are played."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from diptych.bundle.open_bundle import open_bundle
from diptych.cli.main import main
from diptych.core.errors import ConfigError, RunError
from diptych.training.config import TrainConfig, read_config, write_config
from diptych.tuning import trial as trial_module
from diptych.tuning.results import write_results
from diptych.tuning.space import Dimension, Space
from diptych.tuning.study import Row
from diptych.tuning.study_folder import create_study_folder, read_study
from diptych.tuning.trial import InterruptedTrialError, TrialFailedError, run_trial
from diptych.tuning.tune import SamplerName, TuneOptions, tune
from diptych.tuning.verdict import sentences, verdict
from tests.conftest import TINY_RUN
from tests.tuning.played import DIMENSIONS, SPACE, Play, Silent, scored, tuned


def test_the_recipe_comes_first_and_the_best_is_trained_again(
    tmp_path: Path, play: Callable[[Play], list[Path]]
) -> None:
    play(scored)
    found = tuned(tmp_path / "study")
    assert [row.number for row in found] == list(range(8))
    assert [row.is_recipe for row in found] == [True] + 7 * [False]
    assert found[0].settings == {"lr": 2e-3, "batch_size": 16}
    assert found[0].score == pytest.approx(0.89)
    best = max(found[:6], key=lambda row: row.score or 0)
    assert [(row.repeat_of, row.seed, row.settings) for row in found[6:]] == [
        (best.number, 1, best.settings),
        (best.number, 2, best.settings),
    ]
    reached = verdict(found, seed=0)
    assert reached is not None
    assert reached.spread == pytest.approx(0.02)
    assert reached.gap == pytest.approx((best.score or 0) - 0.01 - 0.89)
    said = " ".join(sentences(reached, "recall"))
    assert f"Best: trial {best.number}" in said
    assert "spread 2.00 points" in said


def test_files_of_a_study(tmp_path: Path, play: Callable[[Play], list[Path]]) -> None:
    play(scored)
    found = tuned(tmp_path / "study")
    (tmp_path / "study" / "trials").mkdir()
    write_results(tmp_path / "study", SPACE, found)
    written = tmp_path / "study"
    best = max(found[:6], key=lambda row: row.score or 0)
    config = read_config(written / "best_config.yaml")
    assert config == SPACE.settings(best.settings)
    results = json.loads((written / "best_results.json").read_text(encoding="utf-8"))
    assert results["trial"] == best.number
    assert results["settings"] == best.settings
    assert results["by_seed"].keys() == {"0", "1", "2"}
    assert set(results["importances"]) == {"lr", "batch_size"}
    assert f"optimizer.lr = {best.settings['lr']}" in (written / "best_hyperparameters.txt").read_text(encoding="utf-8")
    with (written / "trials.csv").open(encoding="utf-8") as file:
        assert [int(line["trial"]) for line in csv.DictReader(file)] == list(range(8))
    for name in ("optimization_history", "param_importances", "parallel_coordinates"):
        assert (written / f"{name}.png").stat().st_size > 5000
    space, again = read_study(written)
    assert again == found
    assert space.dimensions == SPACE.dimensions
    assert space.base == SPACE.base


def test_the_table_of_a_study_holds_no_formulas(tmp_path: Path) -> None:
    space = replace(SPACE, dimensions=(Dimension(name="=1+1", fields=("optimizer.lr",), low=-1.0, high=1.0),))
    row = Row(
        number=0,
        state="failed",
        score=-0.25,
        settings={"=1+1": -0.5},
        reason="@SUM(A1)",
        is_recipe=False,
        repeat_of=None,
        seed=None,
        seconds=1.0,
        worker="+host:1",
    )
    write_results(tmp_path, space, [row])
    with (tmp_path / "trials.csv").open(encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert (line["'=1+1"], line["score"], line["reason"], line["worker"]) == ("-0.5", "-0.25", "'@SUM(A1)", "'+host:1")


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc"])
def test_the_same_seed_tries_the_same_settings(
    tmp_path: Path, play: Callable[[Play], list[Path]], sampler: SamplerName
) -> None:
    play(scored)
    one = tuned(tmp_path / "a" / "study", sampler=sampler, trials=5, repeats=0)
    other = tuned(tmp_path / "b" / "study", sampler=sampler, trials=5, repeats=0)
    assert [row.settings for row in one] == [row.settings for row in other]
    assert len({str(row.settings) for row in one}) == 5


def test_hopeless_trials_are_pruned_but_never_the_recipe(tmp_path: Path, play: Callable[[Play], list[Path]]) -> None:
    count = iter(range(100))

    def worse_each_time(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
        del config
        score = 0.0 if (number := next(count)) == 0 else 1 / number
        for resource in range(1, 9):
            on_score(resource, score)
        return score

    play(worse_each_time)
    found = tuned(tmp_path / "study", pruner="hyperband", trials=12, repeats=0)
    assert found[0].state == "done"
    assert {row.state for row in found} == {"done", "pruned"}
    assert all(row.score is not None for row in found)


def test_a_failed_trial_has_its_reason_and_ends_nothing(tmp_path: Path, play: Callable[[Play], list[Path]]) -> None:
    count = iter(range(100))

    def some_fail(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
        match next(count):
            case 1:
                raise TrialFailedError("the loss is no longer a number")
            case 2:
                raise ZeroDivisionError("by zero")
        return scored(config, on_score)

    play(some_fail)
    found = tuned(tmp_path / "study", trials=4, repeats=0)
    assert [row.state for row in found] == ["done", "failed", "failed", "done"]
    assert [row.reason for row in found] == [None, "the loss is no longer a number", "ZeroDivisionError: by zero", None]
    assert write_results(tmp_path / "study", SPACE, found) is not None


def test_where_nothing_works_it_ends(tmp_path: Path, play: Callable[[Play], list[Path]]) -> None:
    def fail(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
        del config, on_score
        raise TrialFailedError("no memory at all")

    play(fail)
    with pytest.raises(RunError, match="the first 3 trials failed, the last one: no memory at all"):
        tuned(tmp_path / "study")


@pytest.mark.parametrize("error", [InterruptedTrialError, KeyboardInterrupt])
def test_an_interrupted_trial_is_gone_on_with(
    tmp_path: Path, play: Callable[[Play], list[Path]], error: type[BaseException]
) -> None:
    tried: list[float] = []

    def third_is_interrupted(config: TrainConfig, on_score: Callable[[int, float], None]) -> float:
        tried.append(config.optimizer.lr)
        if len(tried) == 3:
            raise error
        return scored(config, on_score)

    folders = play(third_is_interrupted)
    with pytest.raises(error):
        tuned(tmp_path / "study")
    found = tuned(tmp_path / "study")
    assert tried[3] == tried[2]
    assert folders[3] == folders[2] == tmp_path / "study" / "trials" / "trial-0002"
    assert [row.number for row in found if row.repeat_of is None] == [0, 1, 2, 4, 5, 6]  # 3 was the second start of 2.
    assert len(set(tried)) == 6


def test_nothing_is_left_to_do(tmp_path: Path, play: Callable[[Play], list[Path]]) -> None:
    folders = play(scored)
    first = tuned(tmp_path / "study")
    assert tuned(tmp_path / "study") == first
    assert len(folders) == 8
    assert len([row for row in tuned(tmp_path / "study", trials=7) if row.repeat_of is None]) == 7


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (replace(SPACE, dimensions=DIMENSIONS[:1]), "another space: batch_size was \\[8, 32\\], now it is not in it"),
        (
            replace(SPACE, dimensions=(replace(DIMENSIONS[0], high=1e-1), DIMENSIONS[1])),
            "lr was from 0.0001 to 0.01, now it is from 0.0001 to 0.1",
        ),
        (replace(SPACE, base=replace(TINY_RUN, seed=5)), "created with seed 0, now it is 5"),
    ],
)
def test_a_study_of_another_space(tmp_path: Path, play: Callable[[Play], list[Path]], space: Space, says: str) -> None:
    play(scored)
    tuned(tmp_path / "study", trials=1, repeats=0)
    with pytest.raises(ConfigError, match=says):
        tuned(tmp_path / "study", space=space)


def test_folders_and_storages_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty and holds no study"):
        create_study_folder(tmp_path, storage=None)
    with pytest.raises(ConfigError, match="holds no study"):
        read_study(tmp_path)
    for storage, says in (
        ("postgresql://ann:secret@127.0.0.1:1/tune", "postgresql://ann@127.0.0.1:1/tune cannot be reached"),
        (
            " POSTGRESQL+psycopg://ann:secret@127.0.0.1:1/tune",
            r"(?i)storage postgresql\+psycopg://ann@127.0.0.1:1/tune cannot",
        ),
        ("postgresql://127.0.0.1:1/tune?user=ann&password=secret", r"&password=\.\.\. cannot be reached"),
        ("postgresql://127.0.0.1:1/tune?password=a'secret&user=ann", r"password=\.\.\.&user=ann cannot be reached"),
        ("postgresql://ann:a@secret@127.0.0.1:1/tune", "write @ in the password as %40"),
        ("mysql://ann:secret@host/db", "is unknown"),
        ("host=127.0.0.1 password=secret", "the storage is unknown"),
        ("nonsense", "is unknown"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            tune(SPACE, tmp_path, options=TuneOptions(storage=storage), observer=Silent())
        assert "secret" not in str(caught.value)


def test_out_of_memory_halves_the_micro_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, tried = vars(trial_module)["train"], list[int | None]()

    def needs_memory(config: TrainConfig, run: Path, **options: object) -> object:
        tried.append(config.micro_batch)
        if config.micro_batch is None or config.micro_batch > enough:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return whole(config, run, overwrite=True, observers=options["observers"])

    monkeypatch.setattr(trial_module, "train", needs_memory)
    enough, scores = 8, list[tuple[int, float]]()
    outcome = run_trial(TINY_RUN, tmp_path / "a", on_score=lambda number, score: scores.append((number, score)))
    assert tried == [None, 8]
    assert outcome.micro_batch == 8
    assert [number for number, _ in scores] == [1, 2]
    assert outcome.score == scores[-1][1]
    enough = 1
    with pytest.raises(TrialFailedError, match="out of memory, also with micro_batch 8"):
        run_trial(TINY_RUN, tmp_path / "b", on_score=lambda *_: None)


def test_a_run_that_diverges_is_a_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise RunError("the loss is no longer a finite number")

    monkeypatch.setattr(trial_module, "train", diverge)
    with pytest.raises(TrialFailedError, match="no longer a finite number"):
        run_trial(TINY_RUN, tmp_path / "run", on_score=lambda *_: None)


def test_a_training_is_pruned_and_its_folder_left(tmp_path: Path) -> None:
    def prune(number: int, score: float) -> None:
        del number, score
        raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        run_trial(TINY_RUN, tmp_path / "run", on_score=prune)
    assert (tmp_path / "run" / "events.jsonl").exists()
    assert not (tmp_path / "run" / "bundle").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(TINY_RUN, tmp_path / "tiny.yaml")
    (tmp_path / "space.yaml").write_text("optimizer.lr: {low: 1e-3, high: 1e-2}\n", encoding="utf-8")
    study = tmp_path / "study"
    words = ["tune", "--config", str(tmp_path / "tiny.yaml"), "--space", str(tmp_path / "space.yaml"), "--steps", "2"]
    assert main([*words, "--trials", "2", "--repeats", "1", "--out", str(study), "--data", "shapes:100"]) == 0
    said = capsys.readouterr().out
    for expected in (
        "metric: mean average precision",
        "trial   1",
        "3 trials",
        "warm-up 2: no learning rate",
        "best_config.yaml",
    ):
        assert expected in said
    assert read_config(study / "best_config.yaml").data.source == "shapes:100"
    assert open_bundle(study / "bundle").tokenizer.context_length == 24
    assert sorted(path.name for path in (study / "trials").iterdir()) == ["trial-0000", "trial-0001", "trial-0002"]
    assert len(list(study.glob("trials/*/bundle"))) == 1
    assert main([*words, "--trials", "0"]) == 2
    assert main(["tune", "--show", str(tmp_path)]) == 2
    assert main(["tune", "--config", str(tmp_path / "tiny.yaml"), "--metric", "recal"]) == 2
    assert "'recal'" in capsys.readouterr().err
