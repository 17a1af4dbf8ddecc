"""Prints evaluation reports and data audits as tables."""

from typing import TYPE_CHECKING

from diptych.cli.output import print_facts, print_line, print_table
from diptych.core.address import redacted
from diptych.core.formatting import percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diptych.data.tools.audit import Audit
    from diptych.evaluation.report import Report
    from diptych.evaluation.retrieval import RetrievalReport
    from diptych.evaluation.zero_shot import ZeroShotReport

_MAX_MEMBERS = 3
"""Maximum number of members to print per group."""


def print_retrieval(report: "RetrievalReport") -> None:
    """Print the retrieval metrics in both directions, the chance level and the protocol."""
    from diptych.evaluation.tables import recall_table

    table, protocol = recall_table(report), report.protocol
    title = f"Retrieval on {protocol['split']}: {protocol['images']} images, {protocol['texts']} texts"
    print_table(title, table.headings, table.rows)
    _print_protocol(protocol)


def print_zero_shot(report: "ZeroShotReport") -> None:
    """Print the accuracies, the three worst classes and the protocol."""
    from diptych.evaluation.tables import accuracy_table, worst_classes

    table, protocol = accuracy_table(report), report.protocol
    worst = [[f"worst: {name}", percent(share)] for name, share in worst_classes(report, 3)]
    title = f"Zero-shot on {protocol['split']}: {protocol['images']} images, {protocol['classes']} classes"
    print_table(title, table.headings, [*table.rows, *worst])
    _print_protocol(protocol)


def print_report(report: "Report") -> None:
    """Print all tables of a report, and the protocol."""
    for number, section in enumerate(report.sections):
        for table in section.tables:
            print_table(section.title if number else report.title, table.headings, table.rows)
        if section.tables and section.text and number == 0:
            print_line(section.text, style="dim")
    _print_protocol(report.protocol)


def _print_protocol(protocol: "Mapping[str, str | int]") -> None:
    values = {name: value for name, value in protocol.items() if name != "split"}
    print_line("; ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()), style="dim")


def print_audit(source: str, audit: "Audit") -> None:
    """Print the counts of a data audit, its findings, and the expected false negatives per batch.

    Args:
        source: address of the data source.
        audit: the audit.
    """
    lengths = sorted(audit.token_counts)
    per_sample = f"{audit.num_captions / audit.num_samples:.1f} per sample"
    tokens = f"median {lengths[len(lengths) // 2]}, maximum {lengths[-1]}"
    in_batches = [f"{pairs:g} pairs in a batch of {size:,}" for size, pairs in audit.false_negatives.items()]
    facts = {
        "samples": f"{audit.num_samples:,}",
        "splits": ", ".join(f"{name} {count:,}" for name, count in audit.splits.items()),
        "classes": f"{len(audit.labels):,}" if audit.labels else "none",
        "captions": f"{audit.num_captions:,}, {per_sample}; {audit.num_empty:,} empty",
        "tokens per caption": f"{tokens}; CLIP's context truncates {audit.num_cut:,}",
        "pictures": ", ".join(f"{name} {width}x{height}" for name, (width, height) in audit.sizes.items()),
        "files": ", ".join(f"{mode} {count:,}" for mode, count in list(audit.modes.items())[:6]) or "none",
        "unreadable": _some([f"{key} ({reason})" for key, reason in audit.unreadable]),
        "the same picture": _some_groups(audit.same, " = "),
        "alike": _some_groups(audit.alike, " ~ "),
        "across splits": _some_groups(audit.across_splits, " ~ "),
        "most frequent": "; ".join(f"{text!r} {count:,}" for text, count in audit.frequent[:3]),
        "false negatives": ", ".join(in_batches),
        "oddities": "" if audit.oddities else "none",
    }
    print_facts(redacted(source), facts)
    for oddity in audit.oddities:
        print_line(f"  {oddity}")


def _some(items: list[str]) -> str:
    return f"{len(items):,}: {'; '.join(items[:2])}{'; ...' if len(items) > 2 else ''}" if items else "none"


def _some_groups(groups: "Sequence[Sequence[str]]", sign: str) -> str:
    """The number of groups, the size of the largest, and the first members of the first two groups."""
    if not groups:
        return "none"
    largest = max(len(group) for group in groups)
    num = f"{len(groups):,} groups, the largest of {largest:,}" if len(groups) > 1 else f"1 group of {largest:,}"
    examples = [sign.join([*group[:_MAX_MEMBERS], *["..."][: len(group) > _MAX_MEMBERS]]) for group in groups[:2]]
    return f"{num}: {'; '.join(examples)}{'; ...' if len(groups) > 2 else ''}"
