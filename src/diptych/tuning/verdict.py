"""The conclusion from a study: the best settings, compared with the recipe's own, and the variation over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from diptych.training.validation import Metric
from diptych.tuning.study import Row, best_of

METRIC_NAMES: dict[Metric, str] = {
    "recall": "mean R@1",
    "map": "mean average precision",
    "loss": "validation loss",
    "zero_shot": "zero-shot accuracy",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The best trial, compared with the recipe's own settings. Higher scores are better."""

    best: Row
    recipe: float | None
    """Score of the recipe's own settings; None if that trial failed."""
    seeds: dict[int, float]
    """Score of the best settings by seed, including that of the best trial."""

    @property
    def spread(self) -> float:
        """Difference between the best and the worst seed."""
        return max(self.seeds.values()) - min(self.seeds.values())

    @property
    def mean(self) -> float:
        """Mean score over the seeds."""
        return mean(self.seeds.values())

    @property
    def gap(self) -> float | None:
        """Mean over the seeds minus the score of the recipe's own settings; None if that trial failed."""
        return None if self.recipe is None else self.mean - self.recipe


def verdict(found: Sequence[Row], *, seed: int) -> Verdict | None:
    """Compare the best settings with the recipe's own; None if no trial is done.

    Args:
        found: the trials.
        seed: seed of all trials that are not repeats.
    """
    best = best_of(list(found))
    if best is None or best.score is None:
        return None
    repeats = {
        row.seed: row.score
        for row in found
        if row.repeat_of == best.number and row.state == "done" and row.score is not None and row.seed is not None
    }
    recipe = next((row.score for row in found if row.is_recipe and row.state == "done"), None)
    return Verdict(best=best, recipe=recipe, seeds={seed: best.score, **repeats})


def shown_score(score: float | None, metric: Metric) -> str:
    """Format a score in the unit of its metric; an empty string for None.

    >>> shown_score(0.1234, "map"), shown_score(-2.5, "loss")
    ('12.34 %', '2.500')
    """
    if score is None:
        return ""
    return f"{-score:.3f}" if metric == "loss" else f"{100 * score:.2f} %"


def sentences(found: Verdict, metric: Metric) -> list[str]:
    """The verdict as text, one line per item."""
    name = METRIC_NAMES[metric]
    lines = [f"Best: trial {found.best.number}, {name} {shown_score(found.best.score, metric)}"]
    if found.best.is_recipe:
        lines[0] += ", which has the recipe's own settings: no other trial was better"
    elif found.recipe is not None:
        lines[0] += f"; the recipe's own settings: {shown_score(found.recipe, metric)}"
    if len(found.seeds) > 1:
        each = ", ".join(f"{shown_score(score, metric)} (seed {seed})" for seed, score in found.seeds.items())
        lines.append(
            f"Trained again: {each}; mean {shown_score(found.mean, metric)}, spread {_points(found.spread, metric)}"
        )
    if found.gap is not None and not found.best.is_recipe and len(found.seeds) > 1:
        lines.append(_how_sure(found, metric))
    return lines


def _how_sure(found: Verdict, metric: Metric) -> str:
    assert found.gap is not None
    gap = f"The mean is {_points(abs(found.gap), metric)} {'better' if found.gap > 0 else 'worse'} than the recipe's own run"
    if found.gap > found.spread:
        return f"{gap}, more than the seeds differ"
    return f"{gap}, less than the seeds differ: not a reliable difference"


def _points(difference: float, metric: Metric) -> str:
    return f"{difference:.3f}" if metric == "loss" else f"{100 * difference:.2f} points"
