"""Plots of a study: optimization history, parameter importances, and parallel coordinates."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diptych.images.fonts import plot_text
from diptych.training.validation import Metric
from diptych.tuning.space import Dimension, Space
from diptych.tuning.study import Row, best_of
from diptych.tuning.verdict import METRIC_NAMES

_BLUE, _ORANGE, _INK, _FAINT = "#2a6fbb", "#d9772b", "#222222", "#9a9a9a"


def plot_history(rows: Sequence[Row], metric: Metric, path: Path) -> None:
    """Plot the scores in the order of the trials to a PNG file, with lines for the best so far and the recipe's own score."""
    figure, axes = _figure(8.5, 4.4)
    done = [row for row in rows if row.state == "done" and row.repeat_of is None]
    pruned = [row for row in rows if row.state == "pruned" and row.score is not None]
    failed = [row for row in rows if row.state == "failed"]
    axes.plot(_numbers(done), _values(done, metric), "o", color=_BLUE, label="done")
    if pruned:
        axes.plot(_numbers(pruned), _values(pruned, metric), "x", color=_FAINT, label="pruned, last validation")
    if failed:
        bottom = axes.get_ylim()[0]
        axes.plot(_numbers(failed), [bottom] * len(failed), "v", color="#c0392b", label="failed", clip_on=False)
    best = accumulate(_values(done, metric), min if metric == "loss" else max)
    axes.step(_numbers(done), list(best), where="post", color=_BLUE, alpha=0.5, label="best so far")
    for row in done:
        if row.is_recipe:
            axes.axhline(_value(row, metric), color=_ORANGE, linestyle=":", label="the recipe's own settings")
    axes.set(xlabel="trial", ylabel=METRIC_NAMES[metric] + ("" if metric == "loss" else ", %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, format="png")


def plot_importances(importances: Mapping[str, float], path: Path) -> None:
    """Plot the share of the scores' variance that each setting explains to a PNG file.

    Args:
        importances: share by setting, within [0, 1]; empty if there are too few trials, which the plot then says.
        path: the file to write.
    """
    figure, axes = _figure(7.5, 1.6 + 0.42 * max(2, len(importances)))
    if importances:
        names, shares = list(importances)[::-1], [100 * share for share in importances.values()][::-1]
        shown, style = plot_text(names)
        bars = axes.barh(range(len(shown)), shares, color=_BLUE, height=0.6)
        axes.set_yticks(range(len(shown)), shown, **style)
        axes.bar_label(bars, fmt="%.0f %%", padding=4, fontsize=9)
        axes.set(xlim=(0, max(shares) * 1.15))
    else:
        axes.text(0.5, 0.5, "too few finished trials", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
    axes.set(xlabel="explained share of the variance of scores (fANOVA), %")
    figure.savefig(path, format="png")


def plot_parallel(rows: Sequence[Row], space: Space, metric: Metric, path: Path) -> None:
    """Plot each trial as a line through its settings to its score (parallel coordinates) to a PNG file.

    The best trial is bold, and the recipe's own settings are dashed.
    """
    done = [row for row in rows if row.state == "done" and row.repeat_of is None and row.score is not None]
    best, scores = best_of(done), _values(done, metric)
    figure, axes = _figure(max(7.0, 1.9 * (len(space.dimensions) + 1)), 4.8)
    low, high = (min(scores), max(scores)) if done else (0.0, 1.0)
    colours = Normalize(low, high if high > low else low + 1)
    columns = [_Column(dimension, [row.settings[dimension.name] for row in done]) for dimension in space.dimensions]
    drawn = sorted(zip(done, scores, strict=True), key=lambda each: each[0] is best)  # Draw the best last.
    paths = []
    for row, score in drawn:
        heights = [column.height(row.settings[column.dimension.name]) for column in columns]
        heights.append((score - low) / (high - low) if high > low else 0.5)
        paths.append(list(enumerate(heights)))
    shares = colours(np.array([score for _, score in drawn]))
    shares = 1 - shares if metric == "loss" else shares
    lines = LineCollection(
        paths,
        colors=np.asarray(colormaps["Blues"](0.25 + 0.75 * shares)),  # From light to dark blue.
        linewidths=[3 if row is best else 1.2 for row, _ in drawn],
        linestyles=["--" if row.is_recipe else "-" for row, _ in drawn],
        zorder=2,
    )
    lines.set_in_layout(False)  # The lines stay within the axes; measuring them is as slow as drawing them.
    axes.add_collection(lines, autolim=False)
    for x, column in enumerate(columns):
        column.draw(axes, x)
    _draw_axis(axes, len(columns), {0.0: _tick(low, metric), 1.0: _tick(high, metric)})
    axes.set(xlim=(-0.3, len(columns) + 0.45), ylim=(-0.06, 1.06), yticks=[])
    names, style = plot_text([*(column.dimension.name for column in columns), METRIC_NAMES[metric]])
    axes.set_xticks(range(len(names)), names, **style)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path, format="png")


class _Column:
    """The axis of one setting: a numeric scale, or its choices at equal distances."""

    def __init__(self, dimension: Dimension, seen: Sequence[object]) -> None:
        self.dimension = dimension
        self._outside = [value for value in dict.fromkeys(seen) if not dimension.contains(value)]
        self._named = [*dimension.choices, *self._outside] if dimension.choices else []
        if not dimension.choices:
            numbers = [float(value) for value in seen if isinstance(value, int | float)]
            self._low, self._high = (self._scale(f([*numbers, dimension.low, dimension.high])) for f in (min, max))

    def _scale(self, value: float) -> float:
        return float(np.log10(value)) if self.dimension.log and value > 0 else value

    def height(self, value: object) -> float:
        """The position of a value on the axis, within [0, 1]."""
        if self._named:
            return self._named.index(value) / max(1, len(self._named) - 1)
        assert isinstance(value, int | float)
        return (self._scale(float(value)) - self._low) / (self._high - self._low)

    def draw(self, axes: Axes, x: int) -> None:
        """Draw the axis with its ticks at position x."""
        if self._named:
            ticks = {
                self.height(value): f"{value:g}" if isinstance(value, float) else str(value) for value in self._named
            }
        else:
            ends = [10**end if self.dimension.log else end for end in (self._low, self._high)]
            ticks = {0.0: f"{ends[0]:.2g}", 1.0: f"{ends[1]:.2g}"}
        _draw_axis(axes, x, ticks)


def _draw_axis(axes: Axes, x: int, ticks: Mapping[float, str]) -> None:
    axes.plot([x, x], [0, 1], color=_INK, linewidth=0.8, zorder=1)
    shown, style = plot_text(ticks.values(), most=40)
    for height, text in zip(ticks, shown, strict=True):
        axes.annotate(
            text,
            (x, height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            zorder=4,
            **style,
        )


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _numbers(rows: Sequence[Row]) -> list[int]:
    return [row.number for row in rows]


def _values(rows: Sequence[Row], metric: Metric) -> list[float]:
    return [_value(row, metric) for row in rows]


def _value(row: Row, metric: Metric) -> float:
    """The score in the unit of the metric: a positive loss, or percent."""
    assert row.score is not None
    return -row.score if metric == "loss" else 100 * row.score


def _tick(value: float, metric: Metric) -> str:
    return f"{value:.3f}" if metric == "loss" else f"{value:.2f} %"
