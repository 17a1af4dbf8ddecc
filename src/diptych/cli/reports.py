"""Evaluation reports as tables."""

from typing import TYPE_CHECKING

from diptych.cli.output import console, percent, print_table

if TYPE_CHECKING:
    from diptych.evaluation.retrieval import RetrievalReport
    from diptych.evaluation.zero_shot import ZeroShotReport


def print_retrieval(report: "RetrievalReport") -> None:
    """Both directions, chance beside them, and the protocol."""
    rows = []
    for name, recall in (("image to text", report.image_to_text), ("text to image", report.text_to_image)):
        rows.append(
            [name, *(percent(value) for value in (recall.r1, recall.r5, recall.r10)), f"{recall.median_rank:g}"]
        )
    candidates = report.text_to_image.num_candidates
    rows.append(
        ["chance, text to image", *(percent(min(1.0, k / candidates)) for k in (1, 5, 10)), f"{candidates / 2:g}"]
    )
    protocol = report.protocol
    title = f"Retrieval on {protocol['split']}: {protocol['images']} images, {protocol['texts']} texts"
    print_table(title, ["", "R@1", "R@5", "R@10", "median rank"], rows)
    _print_protocol(protocol)


def print_zero_shot(report: "ZeroShotReport") -> None:
    """Accuracies, the worst classes, and the protocol."""
    protocol = report.protocol
    rows = [["top 1", percent(report.top1)], ["top 5", percent(report.top5)]]
    rows += [["mean over classes", percent(report.mean_per_class)], ["chance", percent(report.chance)]]
    worst = sorted(report.per_class.items(), key=lambda item: item[1])[:3]
    rows += [[f"worst: {name}", percent(share)] for name, share in worst]
    title = f"Zero-shot on {protocol['split']}: {protocol['images']} images, {protocol['classes']} classes"
    print_table(title, ["", "accuracy"], rows)
    _print_protocol(protocol)


def _print_protocol(protocol: dict[str, str | int]) -> None:
    shown = {name: value for name, value in protocol.items() if name not in {"images", "texts", "classes", "split"}}
    console().print("; ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items()), style="dim")
