"""Remove private data from the metadata of a model: secrets in addresses, folders, and names from the data."""

import re
from collections.abc import Mapping
from typing import Any

from diptych.core.address import redacted

_KEPT = re.compile(
    r"(?<![\w/\\.])hf:[\w.-]+/[\w.-]+(?<!\.parquet)(?<!\.arrow)(?<!\.json)(?<!\.jsonl)(?<!\.csv)(?![\w.\\/-])"
    r"|\b(?!file:)[A-Za-z][\w+.-]*://[^\s\"'<>]*"
    r"|(?<![\w.\\/-])ViT-\w+/\d+(?![\w.\\/-])"
    r"|(?<![\w.:\\/-])\d[\d.,]*(?: \w+/s|/\d[\d.]*)(?![\w\\/-])"
    r"|(?<=[\d%])\s/\s(?=\d)"
)
"""Matches text with a slash that is not a path: hub and web addresses, names of models, rates and fractions."""
_START = re.compile(
    r"(?:\+\s*)?(?:(?<![\w.])\d[\d.]*\*\s*)?(?<![\w.~$%\\/-])[a-z][a-z0-9-]+:(?://)?"
    r"|\+\s*\d[\d.]*\*"
    r"|^\s*\d[\d.]*\*"
)
"""Matches what precedes a location: `kind:` and, in a mixture, its weight."""
_FOLDERS = re.compile(r"[^\n]*[\\/]")
_END = re.compile(r"[\\/]+(?=\s*$)")
_LABEL = re.compile(r"[^\n,\\/]*,\s+(?=[^\n]*[\\/])")
"""Words before a path that has no `kind:`, such as the name of an evaluation."""
_FROM_DATA = frozenset({"per_class"})
"""Metrics whose keys come from the training data: class names, which also appear in captions."""


def shareable(plain: Any) -> Any:
    """Return plain data (dicts, lists, scalars) without secrets in addresses, the folders of paths, and class names.

    Only the last component of an absolute or relative path is kept. A text with a slash is treated as a path, unless it is an
    address on the hub (`hf:user/name`) or on the web, the name of a vision transformer, a rate or a fraction.

    >>> shareable({"data": "csv:clients/Acme/a.csv", "url": "shards:https://ann:pw@host/a.tar", "steps": 3})
    {'data': 'csv:a.csv', 'url': 'shards:https://...@host/a.tar', 'steps': 3}
    >>> shareable({"zero_shot": {"top1": 0.5, "per_class": {"Ann": 1.0}}})
    {'zero_shot': {'top1': 0.5}}
    """
    if isinstance(plain, str):
        return _without_folders(redacted(plain))
    if isinstance(plain, Mapping):
        return {shareable(name): shareable(value) for name, value in plain.items() if name not in _FROM_DATA}
    return [shareable(value) for value in plain] if isinstance(plain, list | tuple) else plain


def _without_folders(text: str) -> str:
    kept = [found[0] for found in _KEPT.finditer(text)]
    parts = [_last_components(part) for part in _KEPT.split(text)]
    return parts[0] + "".join(map("".join, zip(kept, parts[1:], strict=True)))


def _last_components(text: str) -> str:
    """The text with each location reduced to its last component."""
    shown, position = "", 0
    starts = [*_START.finditer(text)]
    for start, end in zip([None, *starts], [*(found.start() for found in starts), len(text)], strict=True):
        position = 0 if start is None else start.end()
        location = _END.sub("", text[position:end])
        label = _LABEL.match(location) if start is None else None
        prefix = "" if start is None else start[0].replace("file://", "").removesuffix("//")
        words = "" if label is None else label[0]
        shown += prefix + words + _FOLDERS.sub("", location[len(words) :])
    return shown
