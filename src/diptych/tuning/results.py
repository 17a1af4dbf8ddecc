"""Writes the results of a study: the best settings, metrics, plots, and a table of all trials."""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import get_param_importances
from optuna.trial import create_trial

from diptych.bundle.folder import whole_folder
from diptych.core.csv_file import write_csv
from diptych.core.errors import BundleError, DiptychWarning
from diptych.core.files import file_lock, write_text
from diptych.core.formatting import plain
from diptych.training.config import write_config
from diptych.tuning.plots import plot_history, plot_importances, plot_parallel
from diptych.tuning.space import Dimension, Space
from diptych.tuning.study import Row, candidates, quiet_optuna
from diptych.tuning.verdict import METRIC_NAMES, Verdict, sentences, verdict

BUNDLE = "bundle"
_MAX_IMPORTANCE_TRIALS = 1000
"""Maximum number of trials from which importances are computed. If there are more, every second, third, ... is used."""


def write_results(folder: Path, space: Space, found: Sequence[Row]) -> Verdict | None:
    """Write the results of the trials so far. Before the first trial is done, only the table of trials is written.

    A lock ensures that only one worker writes at a time. If a file cannot be written, a warning is emitted, and the other files
    are written.

    Args:
        folder: the folder of the study.
        space: the search space.
        found: the trials.

    Returns:
        The verdict on the trials; None before the first trial is done.
    """
    reached = verdict(found, seed=space.base.seed)
    failures: list[str] = []
    try:
        with file_lock(folder / ".lock", wait_s=60.0):
            for what, write in _writers(folder, space, found, reached):
                try:
                    write()
                except OSError as error:
                    failures.append(f"{what} ({error.strerror or error})")
                except BundleError as error:
                    failures.append(str(error))
    except OSError as error:
        failures.append(f"all results ({error.strerror or error})")
    if failures:
        text = f"{folder}: cannot write {', '.join(failures)}; make room, then the same command writes what is missing"
        warnings.warn(text, DiptychWarning, stacklevel=2)
    return reached


def _writers(
    folder: Path, space: Space, found: Sequence[Row], reached: Verdict | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, function that writes it) of each file. Files that cannot be derived from other files come first."""
    metric = space.base.validation.metric
    yield "trials.csv", lambda: _write_table(folder / "trials.csv", space, found)
    if reached is None:
        return
    best = reached.best
    config = space.base if best.is_recipe else space.settings(best.settings)
    yield "best_config.yaml", lambda: write_config(config, folder / "best_config.yaml")
    lines = [f"# {line}" for line in sentences(reached, metric)]
    lines += [f"{field} = {best.settings[d.name]}" for d in space.dimensions for field in d.fields]
    text = "\n".join(lines) + "\n"
    yield "best_hyperparameters.txt", lambda: write_text(folder / "best_hyperparameters.txt", text)
    importances = _importances(space, found)
    content = json.dumps(plain(_content(space, reached, importances)), indent=2) + "\n"
    yield "best_results.json", lambda: write_text(folder / "best_results.json", content)
    history, shares, coordinates = "optimization_history.png", "param_importances.png", "parallel_coordinates.png"
    yield history, lambda: plot_history(found, metric, folder / history)
    yield shares, lambda: plot_importances(importances, folder / shares)
    yield coordinates, lambda: plot_parallel(found, space, metric, folder / coordinates)
    yield BUNDLE, lambda: _copy_bundle(best, folder / BUNDLE)


def _content(space: Space, reached: Verdict, importances: dict[str, float]) -> dict[str, object]:
    best, metric = reached.best, space.base.validation.metric
    return {
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


def _copy_bundle(best: Row, target: Path) -> None:
    """Copy the bundle of the best trial, unless that trial ran on another machine, where its bundle then is."""
    source = Path(best.results.get("folder", "")) / BUNDLE
    if source.is_dir():
        with whole_folder(target) as tmp:
            shutil.copytree(source, tmp, dirs_exist_ok=True)


def _write_table(path: Path, space: Space, found: Sequence[Row]) -> None:
    names = [dimension.name for dimension in space.dimensions]
    is_loss = space.base.validation.metric == "loss"
    rows = []
    for row in found:
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        score = _unsigned(row.score, is_loss)
        values = [row.settings.get(name, "") for name in names]
        rows.append([row.number, row.state, score, *values, row.repeat_of, row.seed, seconds, row.worker, row.reason])
    write_csv(path, ["trial", "state", "score", *names, "repeat_of", "seed", "seconds", "worker", "reason"], rows)


def _unsigned(score: float | None, is_loss: bool) -> float | None:
    """The score in the unit of the metric: the score of a loss is its negative."""
    return None if score is None else -score if is_loss else score


def _importances(space: Space, found: Sequence[Row]) -> dict[str, float]:
    """The share of the scores' variance that each setting explains (fANOVA, Hutter et al. 2014); empty for too few trials."""
    distributions = {dimension.name: _distribution(dimension) for dimension in space.dimensions}
    inside = [
        row
        for row in candidates(list(found))
        if row.state == "done" and all(d.contains(row.settings[d.name]) for d in space.dimensions)
    ]
    inside = inside[:: max(1, math.ceil(len(inside) / _MAX_IMPORTANCE_TRIALS))]
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
