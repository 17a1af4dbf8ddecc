"""Tables of metrics as text, for the terminal and for HTML pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from diptych.core.formatting import percent
from diptych.evaluation.retrieval import Recall, RetrievalReport
from diptych.evaluation.zero_shot import ZeroShotReport


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; all columns except the first contain numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def recall_table(report: RetrievalReport) -> Table:
    """Return the recall of both directions, and that of random guessing."""
    candidates = report.text_to_image.num_candidates
    return Table(
        ["", "R@1", "R@5", "R@10", "median rank", "mean rank", "mAP"],
        [
            _recall("image to text", report.image_to_text),
            _recall("text to image", report.text_to_image),
            [
                "chance, text to image",
                *(percent(min(1.0, k / candidates)) for k in (1, 5, 10)),
                f"{(candidates + 1) / 2:g}",
                f"{(candidates + 1) / 2:.1f}",
                "",
            ],
        ],
    )


def accuracy_table(report: ZeroShotReport) -> Table:
    """Return the accuracies, the accuracy of random guessing, and the calibration error."""
    rows = [["top 1", percent(report.top1)]]
    if report.chance < 0.2:
        rows.append(["top 5", percent(report.top5)])
    rows += [["mean over classes", percent(report.mean_per_class)], ["chance", percent(report.chance)]]
    return Table(["", "share"], [*rows, ["calibration error", percent(report.calibration_error)]])


def worst_classes(report: ZeroShotReport, most: int = 5) -> list[tuple[str, float]]:
    """Return the names and accuracies of the (at most) `most` classes with the lowest accuracy, the lowest first."""
    return sorted(report.per_class.items(), key=lambda item: item[1])[:most]


def _recall(name: str, recall: Recall) -> list[str]:
    shares = [percent(share) for share in (recall.r1, recall.r5, recall.r10)]
    return [name, *shares, f"{recall.median_rank:g}", f"{recall.mean_rank:.1f}", percent(recall.mean_average_precision)]
