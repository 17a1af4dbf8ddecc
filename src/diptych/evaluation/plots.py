"""Plots of evaluations, returned as the bytes of PNG files. Shapes: C classes."""

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
_COLORS = (_BLUE, _ORANGE, "#3a8f5c", "#8e5ea2", "#c0392b", "#7a7a7a")
_MAX_NAMED = 30


def plot_confusion(table: Int64[ndarray, "C C"], classes: Sequence[str]) -> bytes:
    """Plot the confusion matrix as shares of each true class (row) by predicted class (column).

    Args:
        table: number of images by true and predicted class.
        classes: class names; they are shown if there are at most 30.
    """
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.2 + 0.42 * len(classes), 4.5, 14))
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= _MAX_NAMED:
        names, style = plot_text(classes)
        ticks = range(len(names))
        axes.set_yticks(ticks, names, fontsize=9, **style)
        axes.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=9, **style)
    if len(classes) <= 20:
        for row, column in zip(*np.nonzero(table), strict=True):
            color = "white" if share[row, column] > 0.55 else _INK
            text = f"{100 * share[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the class")
    return _png(figure)


def plot_reliability(calibration: Calibration) -> bytes:
    """Plot accuracy against confidence (reliability diagram), with a histogram of confidence; the diagonal is perfect."""
    figure = Figure(figsize=(5.2, 5.2), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    bins = len(calibration.count)
    centers = (np.arange(bins) + 0.5) / bins
    upper.plot([0, 1], [0, 1], color=_FAINT, linestyle=":")
    filled = calibration.count > 0
    upper.bar(centers[filled], calibration.accuracy[filled], width=0.9 / bins, color=_BLUE, label="correct")
    upper.plot(calibration.confidence[filled], calibration.accuracy[filled], "o", color=_ORANGE, markersize=4)
    upper.set(ylabel="accuracy", ylim=(0, 1), title=f"Calibration error {100 * calibration.error:.1f} %")
    lower.bar(centers, calibration.count, width=0.9 / bins, color=_FAINT)
    lower.set(xlabel="probability of the answer", ylabel="images", xlim=(0, 1))
    for axes in (upper, lower):
        _plain(axes)
    return _png(figure)


def plot_strengths(curves: Mapping[str, Sequence[float]], *, clean: float, measure: str) -> bytes:
    """Plot a metric under each disturbance, from strength 0 (none) to the strongest.

    Args:
        curves: for each disturbance, the metric at each strength from 1, in [0, 1].
        clean: the metric without disturbance, in [0, 1].
        measure: name of the metric.
    """
    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for color, (name, values) in zip(_COLORS * 4, curves.items(), strict=False):
        shown = [100 * clean, *(100 * value for value in values)]
        axes.plot(range(len(shown)), shown, marker="o", markersize=4, color=color, label=name)
    axes.set(xlabel="strength (0: undisturbed)", ylabel=f"{measure}, %", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return _png(figure)


def plot_ranks(ranks: Mapping[str, tuple[Int64[ndarray, "_"], int]]) -> bytes:
    """Plot recall at k against k for each direction, and the recall of random guessing.

    Args:
        ranks: for each direction, the rank of each query's correct answer, from 1, and the number of candidates.
    """
    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for color, (name, (rank, num)) in zip(_COLORS, ranks.items(), strict=False):
        ks = np.unique(np.geomspace(1, num, 60).astype(int))
        axes.plot(ks, [100 * float((rank <= k).mean()) for k in ks], color=color, label=name)
    axes.plot(ks, 100 * ks / num, color=_FAINT, linestyle=":", label="guessing")
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
