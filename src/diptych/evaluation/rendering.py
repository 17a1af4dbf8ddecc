"""Build reports from the results of evaluations: tables, plots, and pictures of correct and incorrect answers."""

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from diptych.core.deprecation import renamed_names
from diptych.core.formatting import percent
from diptych.evaluation.compare import Comparison
from diptych.evaluation.plots import plot_confusion, plot_ranks, plot_reliability, plot_strengths
from diptych.evaluation.probe import KnnReport, ProbeReport
from diptych.evaluation.report import Picture, Report, Section, png_of
from diptych.evaluation.retrieval import PairScores, Retrieval
from diptych.evaluation.robustness import Robustness
from diptych.evaluation.tables import Table, accuracy_table, recall_table, worst_classes
from diptych.evaluation.zero_shot import ZeroShot
from diptych.images.sheet import SheetRow, contact_sheet

_SHOWN = 10
_PER_CLASS = 6

T = TypeVar("T")


def render_zero_shot(result: ZeroShot) -> Report:
    """Return a report with accuracies, sample answers, pictures of the worst classes, confusion matrix and calibration."""
    report = result.report
    worst = worst_classes(report)
    confusion = Picture(
        "confusion",
        lambda: plot_confusion(result.confusion(), result.classes),
        f"Predicted class (column) of the images of each class (row), in % of the class; {len(result.labels):,} images",
    )
    reliability = Picture(
        "reliability",
        lambda: plot_reliability(result.calibration),
        "Accuracy by predicted probability; below the line the model is overconfident",
    )
    return Report(
        title=f"Zero-shot on {report.protocol['split']}: {len(result.labels):,} images, {len(result.classes):,} classes",
        summary=f"top 1 {percent(report.top1)}, mean over classes {percent(report.mean_per_class)}",
        metrics=report,
        protocol=report.protocol,
        sections=[
            Section("Accuracy", tables=[accuracy_table(report)], pictures=[_answers(result)]),
            Section(
                "The worst classes",
                tables=[Table(["class", "accuracy"], [[name, percent(share)] for name, share in worst])],
                pictures=_failures(result, [name for name, _ in worst]),
            ),
            Section("Confusion matrix", pictures=[confusion]),
            Section(
                "Calibration",
                "The calibration error is the mean distance between bars and line, weighted by the number of answers.",
                pictures=[reliability],
            ),
        ],
    )


def _describe_cosines(pairs: PairScores) -> str:
    return (
        f"The median is {pairs.own:.3f} for a text with its own image and {pairs.others:.3f} with others. A threshold of "
        f"{pairs.threshold:.3f} misclassifies {percent(pairs.wrong)} of either kind; `classify --threshold auto` uses it."
    )


def render_retrieval(result: Retrieval) -> Report:
    """Return a report with the recall of both directions, the ranks of correct answers, and pictures of sample queries."""
    report, pairs = result.report, result.pairs
    ranks = {
        "image to text": (result.image_to_text.rank, result.image_to_text.num_candidates),
        "text to image": (result.text_to_image.rank, result.text_to_image.num_candidates),
    }
    curve = Picture("ranks", lambda: plot_ranks(ranks), "Share of queries whose right answer is among the k best")
    both = f"{percent(report.image_to_text.r1)} / {percent(report.text_to_image.r1)}"
    return Report(
        title=f"Retrieval on {report.protocol['split']}: {len(pairs.images.rows):,} images, {len(pairs.captions):,} texts",
        summary=f"R@1 {both} (image to text / text to image)",
        metrics=report,
        protocol=report.protocol,
        sections=[
            Section("Recall", tables=[recall_table(report)]),
            Section("Recall at k", pictures=[curve]),
            Section("Cosine similarities", _describe_cosines(report.pairs)),
            Section("Pictures and the caption found for each", pictures=_query_pictures(result)),
        ],
    )


def render_probe(report: ProbeReport) -> Report:
    """Return a report with the accuracy of the classifier and of every weight decay that was tried."""
    rows = [[f"{c:.3g}", percent(accuracy)] for c, accuracy in sorted(report.sweep.items())]
    return Report(
        title=f"Linear probe on {report.protocol['split']}: {report.protocol['images']:,} images",
        summary=f"top 1 {percent(report.top1)}",
        metrics=report,
        protocol=report.protocol,
        sections=[
            Section("Accuracy", tables=[Table(["", "accuracy"], _probe_rows(report.top1, report.mean_per_class))]),
            Section(
                "Selection of the weight decay",
                f"Best on {report.protocol['chosen_on']}: C = {report.c:.3g}",
                tables=[Table(["C (inverse decay)", "validation accuracy"], rows)],
            ),
        ],
    )


def render_knn(report: KnnReport) -> Report:
    """Return a report with the accuracy of nearest-neighbor classification."""
    rows = _probe_rows(report.top1, report.mean_per_class)
    return Report(
        title=f"Nearest neighbors on {report.protocol['split']}: {report.protocol['images']:,} images",
        summary=f"top 1 {percent(report.top1)}",
        metrics=report,
        protocol=report.protocol,
        sections=[Section("Accuracy", tables=[Table(["", "accuracy"], rows)])],
    )


def render_robustness(result: Robustness) -> Report:
    """Return a report with the metric under each disturbance, and example pictures of the disturbances."""
    headings = ["", "undisturbed", *(f"strength {s}" for s in range(1, 6)), "mean of 1 to 5"]
    rows = [
        [name, percent(result.clean), *map(percent, values), percent(float(np.mean(values)))]
        for name, values in result.disturbed.items()
    ]
    mean = float(np.mean(list(result.disturbed.values())))

    def plot() -> bytes:
        return plot_strengths(result.disturbed, clean=result.clean, measure=result.measure)

    return Report(
        title=f"Robustness on {result.protocol['split']}: {result.protocol['images']:,} images",
        summary=f"{result.measure} {percent(result.clean)}, disturbed {percent(mean)}",
        metrics=result.metrics(),
        protocol=result.protocol,
        sections=[
            Section(
                result.measure,
                tables=[Table(headings, rows)],
                pictures=[Picture("robustness", plot, f"{result.measure} under each disturbance")],
            ),
            Section(
                "Examples of the disturbances",
                pictures=[Picture("disturbances", lambda: png_of(result.sheet()), "One picture at every strength")],
            ),
        ],
    )


def render_comparison(comparison: Comparison) -> Report:
    """Return a report with the metric of each model, confidence intervals of the differences, and pictures that differ."""
    headings = ["", comparison.measure, "95 % interval", f"minus {comparison.names[0]}", "95 % interval"]
    rows = []
    for number, name in enumerate(comparison.names):
        own, difference = comparison.own[number], comparison.differences[number]
        rows.append(
            [
                name,
                percent(own.value),
                f"{percent(own.low)} to {percent(own.high)}",
                "" if number == 0 else f"{100 * difference.value:+.1f}",
                "" if number == 0 else f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
            ]
        )
    pictures = [
        picture
        for number in range(1, len(comparison.names))
        for picture in (_differing(comparison, 0, number), _differing(comparison, number, 0))
        if picture is not None
    ]
    return Report(
        title=f"Comparison on {comparison.protocol['split']}: {len(comparison.images.rows):,} images",
        summary=", ".join(
            f"{name} {percent(own.value)}" for name, own in zip(comparison.names, comparison.own, strict=True)
        ),
        metrics=comparison.metrics(),
        protocol=comparison.protocol,
        sections=[
            Section("How they compare", comparison.explanation, tables=[Table(headings, rows)]),
            Section("Where they differ", pictures=pictures),
        ],
    )


def _differing(comparison: Comparison, right: int, wrong: int) -> Picture | None:
    """Return a picture of samples that model `right` gets right and model `wrong` gets wrong; None if there are none."""
    selected = comparison.only(right, wrong)
    if not selected:
        return None
    title = f"{comparison.names[right]} is right, {comparison.names[wrong]} wrong: {len(selected):,} images"

    def draw() -> bytes:
        tiles = [(comparison.picture(row), comparison.describe(row, right, wrong)) for row in selected[:_SHOWN]]
        return png_of(contact_sheet([SheetRow(title, tiles)], columns=5, caption_lines=3))

    return Picture(f"right-{right}-wrong-{wrong}", draw, title)


def _probe_rows(top1: float, mean_per_class: float) -> list[list[str]]:
    return [["top 1", percent(top1)], ["mean over classes", percent(mean_per_class)]]


def _answers(result: ZeroShot) -> Picture:
    """Return a picture of evenly spaced images with the answers of the model, whether right or wrong."""
    rows = spread(range(len(result.labels)), 2 * _SHOWN)

    def draw() -> bytes:
        tiles = [(result.images.picture(row), _answer(result, row)) for row in rows]
        return png_of(contact_sheet([SheetRow("Some answers", tiles)], columns=5, tile_px=140, caption_lines=2))

    return Picture("answers", draw, "Some images, with the model's answer and its probability")


def _failures(result: ZeroShot, classes: Sequence[str]) -> list[Picture]:
    """Return a picture of misclassified images of each class, the most confident first; no picture if there are none."""
    selected: dict[str, list[int]] = {}
    for name in classes:
        wrong = np.flatnonzero((result.labels == result.classes.index(name)) & (result.predicted != result.labels))
        most_confident = wrong[np.argsort(-result.probability[wrong], kind="stable")][:_PER_CLASS].tolist()
        if most_confident:
            selected[name] = most_confident
    if not selected:
        return []

    def draw() -> bytes:
        rows = [
            SheetRow(
                f"{name}, predicted as", [(result.images.picture(row), _answer(result, row)) for row in wrong_rows]
            )
            for name, wrong_rows in selected.items()
        ]
        return png_of(contact_sheet(rows, columns=_PER_CLASS, tile_px=140, caption_lines=2))

    return [Picture("worst-classes", draw, "Images of the worst classes with wrong answers, the most confident first")]


def _answer(result: ZeroShot, row: int) -> str:
    predicted, true = (result.classes[int(side[row])] for side in (result.predicted, result.labels))
    return f"{predicted} {100 * result.probability[row]:.0f} %{'' if predicted == true else f' (is {true})'}"


def _query_pictures(result: Retrieval) -> list[Picture]:
    """Return one picture of images whose best text is correct and one of images whose best text is not."""
    found = result.image_to_text.found_at(1)
    titles = {"found": "The best caption is the picture's own", "missed": "The best caption is another picture's"}
    selected = {"found": np.flatnonzero(found).tolist(), "missed": np.flatnonzero(~found).tolist()}
    return [
        Picture(
            name,
            partial(_draw_queries, result, spread(rows, _SHOWN), titles[name]),
            f"{titles[name]}: {len(rows):,} pictures",
        )
        for name, rows in selected.items()
        if rows
    ]


def _draw_queries(result: Retrieval, rows: Sequence[int], title: str) -> bytes:
    pairs = result.pairs
    best = (pairs.image_emb[list(rows)] @ pairs.text_emb.T).argmax(axis=1)
    tiles = [
        (pairs.images.picture(row), _caption(pairs.captions[text], int(result.image_to_text.rank[row])))
        for row, text in zip(rows, best.tolist(), strict=True)
    ]
    return png_of(contact_sheet([SheetRow(title, tiles)], columns=5, tile_px=160, caption_lines=3))


def _caption(text: str, rank: int) -> str:
    return text if rank == 1 else f"(own: rank {rank}) {text}"


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` items at evenly spaced positions.

    >>> spread(range(10), 3)
    [0, 4, 9]
    """
    if len(items) <= most:
        return list(items)
    return [items[int(position)] for position in np.linspace(0, len(items) - 1, most)]


__getattr__ = renamed_names(
    __name__,
    {
        f"tell_{kind}": f"render_{kind}"
        for kind in ("zero_shot", "retrieval", "probe", "knn", "robustness", "comparison")
    },
)
