"""The files that tuning leaves: the best settings to read and to run, figures, pictures and a table of all trials."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import get_param_importances
from optuna.trial import create_trial

from diptych.core.figures import plain
from diptych.core.files import atomic_write, file_lock, write_text
from diptych.training.config import write_config
from diptych.tuning.plots import plot_history, plot_importances, plot_parallel
from diptych.tuning.space import Dimension, Space
from diptych.tuning.study import Row, candidates, quiet_optuna
from diptych.tuning.verdict import METRIC_NAMES, Verdict, sentences, verdict

BUNDLE = "bundle"


def write_results(folder: Path, space: Space, found: Sequence[Row]) -> Verdict | None:
    """Write what the trials so far tell; None, and a table alone, as long as none is done.

    Workers that share the folder write one after another.
    """
    with file_lock(folder / ".lock", wait_s=60.0):
        return _write(folder, space, found)


def _write(folder: Path, space: Space, found: Sequence[Row]) -> Verdict | None:
    metric = space.base.validation.metric
    _write_table(folder / "trials.csv", space, found)
    reached = verdict(found, seed=space.base.seed)
    if reached is None:
        return None
    best = reached.best
    lines = [f"# {line}" for line in sentences(reached, metric)]
    lines += [f"{field} = {best.settings[d.name]}" for d in space.dimensions for field in d.fields]
    write_text(folder / "best_hyperparameters.txt", "\n".join(lines) + "\n")
    config = space.base if best.is_recipe else space.settings(best.settings)
    write_config(config, folder / "best_config.yaml")
    importances = _importances(space, found)
    content = {
        "metric": METRIC_NAMES[metric],
        "trial": best.number,
        "is_recipe": best.is_recipe,
        "score": _unsigned(best.score, metric == "loss"),
        "recipe_score": _unsigned(reached.recipe, metric == "loss"),
        "by_seed": {seed: _unsigned(score, metric == "loss") for seed, score in reached.seeds.items()},
        "mean": _unsigned(reached.mean, metric == "loss"),
        "spread": reached.spread,
        "gap_to_recipe": reached.gap,
        "settings": best.settings,
        "importances": importances,
        "results": best.results,
    }
    write_text(folder / "best_results.json", json.dumps(plain(content), indent=2) + "\n")
    plot_history(found, metric, folder / "optimization_history.png")
    plot_importances(importances, folder / "param_importances.png")
    plot_parallel(found, space, metric, folder / "parallel_coordinates.png")
    _copy_bundle(best, folder / BUNDLE)
    return reached


def _copy_bundle(best: Row, place: Path) -> None:
    """Where another machine trained it, it lies there."""
    source = Path(best.results.get("folder", "")) / BUNDLE
    if source.is_dir():
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)


def _write_table(path: Path, space: Space, found: Sequence[Row]) -> None:
    names = [dimension.name for dimension in space.dimensions]
    is_loss = space.base.validation.metric == "loss"
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "score", *names, "repeat_of", "seed", "seconds", "worker", "reason"])
        for row in found:
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            score = _unsigned(row.score, is_loss)
            values = [row.settings.get(name, "") for name in names]
            writer.writerow(
                [row.number, row.state, score, *values, row.repeat_of, row.seed, seconds, row.worker, row.reason]
            )


def _unsigned(score: float | None, is_loss: bool) -> float | None:
    """In the metric's own unit: a loss counts against a trial, but is positive."""
    return None if score is None else -score if is_loss else score


def _importances(space: Space, found: Sequence[Row]) -> dict[str, float]:
    """Of each setting, the share of the scores' variance that it explains (Hutter et al. 2014); empty for too few trials."""
    distributions = {dimension.name: _distribution(dimension) for dimension in space.dimensions}
    inside = [
        row
        for row in candidates(list(found))
        if row.state == "done" and all(d.holds(row.settings[d.name]) for d in space.dimensions)
    ]
    if len({row.score for row in inside}) < 2 or len(inside) < 4:
        return {}
    with quiet_optuna():
        study = optuna.create_study(direction="maximize")
        for row in inside:
            assert row.score is not None
            study.add_trial(create_trial(params=dict(row.settings), distributions=distributions, value=row.score))
        return get_param_importances(study)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
