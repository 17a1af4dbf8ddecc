"""Evaluation reports as tables."""

from typing import TYPE_CHECKING

from diptych.cli.output import console, percent, print_facts, print_table

if TYPE_CHECKING:
    from diptych.data.audit import Audit
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


def print_audit(source: str, audit: "Audit") -> None:
    """Counts, what is wrong, and what a batch is like."""
    lengths = sorted(audit.token_counts)
    a_sample = f"{audit.num_captions / audit.num_samples:.1f} a sample"
    tokens = f"{lengths[len(lengths) // 2]} in the middle, {lengths[-1]} at most"
    in_batches = [f"{pairs:g} pairs in a batch of {size:,}" for size, pairs in audit.false_negatives.items()]
    facts = {
        "samples": f"{audit.num_samples:,}",
        "splits": ", ".join(f"{name} {count:,}" for name, count in audit.splits.items()),
        "classes": f"{len(audit.labels):,}" if audit.labels else "none",
        "captions": f"{audit.num_captions:,}, {a_sample}; {audit.num_empty:,} empty",
        "tokens a caption": f"{tokens}; CLIP's context cuts {audit.num_cut:,}",
        "pictures": ", ".join(f"{name} {width}x{height}" for name, (width, height) in audit.sizes.items()),
        "files": ", ".join(f"{mode} {count:,}" for mode, count in list(audit.modes.items())[:6]) or "none",
        "unreadable": _some([f"{key} ({reason})" for key, reason in audit.unreadable]),
        "the same picture": _some([" = ".join(group) for group in audit.same]),
        "alike": _some([f"{one} ~ {other}" for one, other in audit.alike]),
        "across splits": _some([f"{one} ~ {other}" for one, other in audit.across_splits]),
        "most frequent": "; ".join(f"{text!r} {count:,}" for text, count in audit.frequent[:3]),
        "false negatives": ", ".join(in_batches),
    }
    print_facts(source, facts)


def _some(items: list[str]) -> str:
    return f"{len(items):,}: {'; '.join(items[:2])}{'; ...' if len(items) > 2 else ''}" if items else "none"
