"""What an index knows of a picture beside its vector."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from diptych.core.deprecated import renamed_attribute


@dataclass(frozen=True, kw_only=True)
class FileStat:
    """What tells, without reading a file, that it has not changed."""

    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, in nanoseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture."""

    key: str
    """Where it lies: the absolute path."""
    digest: str
    """Of its content: pictures of one digest share a vector."""
    stamp: FileStat
    width: int | None = None
    """Pixels, upright."""
    height: int | None = None
    taken: str | None = None
    """When, by the camera: `2024-05-01 12:00:00`."""
    captions: tuple[str, ...] = ()
    sidecar: FileStat | None = None
    """FileStat of the text file next to the picture that the captions were read from; None if there was none."""
    target: str | None = None
    """The path with all symbolic links resolved, if that is not `key`; None for a picture that no link leads to."""
    phash: int | None = None
    """The perceptual hash of the picture (`images/fingerprints.py`), 64 bits; None if it was not computed."""


def merged_left_out(
    stored: Mapping[str, Mapping[str, int]], new: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Counts of files by folder and suffix, with those of newly scanned folders. No file is counted twice.

    >>> merged_left_out({"/a/b": {".heic": 2}, "/c": {".cr2": 1}}, {"/a": {".heic": 3}, "/c": {}})
    {'/a': {'.heic': 3}}
    """
    merged = {folder: dict(counts) for folder, counts in stored.items()}
    for folder, counts in new.items():
        inside = f"{folder.rstrip('/')}/"
        merged = {name: known for name, known in merged.items() if name != folder and not name.startswith(inside)}
        is_below = any(folder.startswith(f"{name.rstrip('/')}/") for name in merged)
        found = {suffix: num for suffix, num in counts.items() if num}
        if found and not is_below:
            merged[folder] = found
    return merged


def common_folder(first: str | None, last: str | None) -> str | None:
    """The nearest folder that contains all keys, from the first and the last key in order; None without keys or for the root.

    >>> common_folder("/photos/2023/a.jpg", "/photos/2024/b.jpg"), common_folder("/a.jpg", "/b/c.jpg")
    ('/photos', None)
    """
    if first is None or last is None:
        return None
    pairs = zip(first.split("/")[:-1], last.split("/")[:-1], strict=False)
    return "/".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) or None


@dataclass(frozen=True, kw_only=True)
class SearchHit:
    """An entry that answers a query."""

    entry: Entry
    score: float
    """Its cosine with the query, within [-1, 1]."""


def __getattr__(name: str) -> Any:
    return renamed_attribute(__name__, name, {"Found": "SearchHit", "Stamp": "FileStat"})
