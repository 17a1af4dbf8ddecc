"""Plots of evaluations, as PNG files in memory. Shapes: C classes."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from diptych.evaluation.calibration import Calibration
from diptych.images.fonts import plot_text

_BLUE, _ORANGE, _INK, _FAINT = "#2a6fbb", "#d9772b", "#222222", "#9a9a9a"
_COLOURS = (_BLUE, _ORANGE, "#3a8f5c", "#8e5ea2", "#c0392b", "#7a7a7a")
_MAX_NAMED = 30


def plot_confusion(table: Int64[ndarray, "C C"], classes: Sequence[str]) -> bytes:
    """Shares of each true class (row) by predicted class (column)."""
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.2 + 0.42 * len(classes), 4.5, 14))
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="taken for", ylabel="is")
    if len(classes) <= _MAX_NAMED:
        names, style = plot_text(classes)
        places = range(len(names))
        axes.set_yticks(places, names, fontsize=9, **style)
        axes.set_xticks(places, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=9, **style)
    if len(classes) <= 20:
        for row, column in zip(*np.nonzero(table), strict=True):
            colour = "white" if share[row, column] > 0.55 else _INK
            text = f"{100 * share[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the class")
    return _png(figure)


def plot_reliability(calibration: Calibration) -> bytes:
    """Share that is right against how sure the model was; on the diagonal probabilities mean what they say."""
    figure = Figure(figsize=(5.2, 5.2), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    bins = len(calibration.count)
    centres = (np.arange(bins) + 0.5) / bins
    upper.plot([0, 1], [0, 1], color=_FAINT, linestyle=":")
    filled = calibration.count > 0
    upper.bar(centres[filled], calibration.accuracy[filled], width=0.9 / bins, color=_BLUE, label="right")
    upper.plot(calibration.confidence[filled], calibration.accuracy[filled], "o", color=_ORANGE, markersize=4)
    upper.set(ylabel="share that is right", ylim=(0, 1), title=f"Calibration error {100 * calibration.error:.1f} %")
    lower.bar(centres, calibration.count, width=0.9 / bins, color=_FAINT)
    lower.set(xlabel="probability of the answer", ylabel="images", xlim=(0, 1))
    for axes in (upper, lower):
        _plain(axes)
    return _png(figure)


def plot_strengths(curves: Mapping[str, Sequence[float]], *, clean: float, measure: str) -> bytes:
    """A figure under each disturbance, from none to the strongest."""
    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for colour, (name, values) in zip(_COLOURS * 4, curves.items(), strict=False):
        shown = [100 * clean, *(100 * value for value in values)]
        axes.plot(range(len(shown)), shown, marker="o", markersize=4, color=colour, label=name)
    axes.set(xlabel="strength (0: as it is)", ylabel=f"{measure}, %", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return _png(figure)


def plot_ranks(ranks: Mapping[str, tuple[Int64[ndarray, "_"], int]]) -> bytes:
    """Share of queries found within the k best, for each direction, and what guessing finds.

    Args:
        ranks: by direction, the rank of each query's right answer, and how many candidates there were.
    """
    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for colour, (name, (rank, num)) in zip(_COLOURS, ranks.items(), strict=False):
        most = np.unique(np.geomspace(1, num, 60).astype(int))
        axes.plot(most, [100 * float((rank <= k).mean()) for k in most], color=colour, label=name)
    most = np.unique(np.geomspace(1, num, 60).astype(int))
    axes.plot(most, 100 * most / num, color=_FAINT, linestyle=":", label="guessing")
    axes.set(xscale="log", xlabel="k", ylabel="found among the k best, %", ylim=(0, 101))
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return _png(figure)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
