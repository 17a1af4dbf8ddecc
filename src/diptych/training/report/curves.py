"""Draws `curves.png`: training and validation loss and accuracy over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diptych.core.files import atomic_write

_IMAGE, _TEXT, _INK, _FAINT = "#2a6fbb", "#d9772b", "#222222", "#9a9a9a"


def draw_curves(events: Sequence[dict[str, Any]], path: Path, *, ln_n: float) -> None:
    """Draw the events of a run to a PNG file.

    Args:
        events: steps and validations of the event log.
        path: the file to write.
        ln_n: ln(batch size), the loss of uniform guessing; drawn as a dotted line.
    """
    steps = [event for event in events if "loss" in event]
    validations = [event for event in events if "val_loss" in event]
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _line(loss, steps, "loss", colour=_INK, label="training")
    _points(loss, validations, "val_loss", colour="#c0392b", label="validation")
    loss.axhline(ln_n, color=_FAINT, linestyle=":", linewidth=1.2)
    loss.annotate(f"chance: ln N = {ln_n:.2f}", (0.98, ln_n), xycoords=("axes fraction", "data"),
                  xytext=(0, 4), textcoords="offset points", ha="right", color=_FAINT, fontsize=9)  # fmt: skip
    loss.set(title="Loss", xlabel="step", ylim=(0, None))
    for name, colour, label in (("image_to_text", _IMAGE, "image to text"), ("text_to_image", _TEXT, "text to image")):
        _line(accuracy, steps, name, colour=colour, label=f"{label}, training", scale=100)
        _points(accuracy, validations, f"val_{name}", colour=colour, label=f"{label}, validation", scale=100)
    accuracy.set(title="Accuracy within the batch", xlabel="step", ylabel="%", ylim=(0, 102))
    for axes in (loss, accuracy):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=9)
    with atomic_write(path) as tmp:
        figure.savefig(tmp, format="png")


def _line(
    axes: Axes, events: Sequence[dict[str, Any]], name: str, *, colour: str, label: str, scale: float = 1
) -> None:
    """Draw the values as a faint line and their running mean as a solid line."""
    if not events:
        return
    x = [event["step"] for event in events]
    y = np.array([event[name] for event in events]) * scale
    width = max(1, len(y) // 25)
    padded = np.concatenate([np.full(width - 1, y[0]), y])
    axes.plot(x, y, color=colour, alpha=0.18, linewidth=1)
    axes.plot(x, np.convolve(padded, np.ones(width) / width, mode="valid"), color=colour, linewidth=1.8, label=label)


def _points(
    axes: Axes, events: Sequence[dict[str, Any]], name: str, *, colour: str, label: str, scale: float = 1
) -> None:
    x, y = [event["step"] for event in events], [event[name] * scale for event in events]
    axes.plot(x, y, color=colour, linestyle="--", linewidth=1.2, marker="o", markersize=4, label=label)
