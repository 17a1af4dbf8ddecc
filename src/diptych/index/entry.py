"""The metadata of pictures in an index."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

from diptych.core.deprecation import renamed_names


@dataclass(frozen=True, kw_only=True)
class FileStat:
    """Size and modification time of a file. If both are equal to the stored ones, the file is regarded as unchanged."""

    size: int
    """Size in bytes."""
    modified_ns: int
    """Modification time, in nanoseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The metadata of one picture."""

    key: str
    """Absolute path of the picture."""
    digest: str
    """Hash of the content of the file. Pictures with the same digest share a vector."""
    stamp: FileStat
    """Size and modification time of the file."""
    width: int | None = None
    """Width in pixels, after rotation to the upright orientation; None if unknown."""
    height: int | None = None
    """Height in pixels, likewise."""
    taken: str | None = None
    """Local time of the exposure according to the camera, such as `2024-05-01 12:00:00`; None if unknown."""
    captions: tuple[str, ...] = ()
    """Caption lines."""
    sidecar: FileStat | None = None
    """Size and modification time of the text file that the captions were read from; None if there was none."""
    target: str | None = None
    """Path with all symbolic links resolved; None if that is `key`."""
    phash: int | None = None
    """Perceptual hash of the picture, 64 bits (`images/fingerprints.py`); None if it was not computed."""


def merged_left_out(
    stored: Mapping[str, Mapping[str, int]], new: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Counts of files by folder and suffix, updated with the counts of newly scanned folders.

    A new count of a folder replaces the stored counts of the folder and its subfolders. A new count of a subfolder of a stored
    folder is dropped, so that no file is counted twice.

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
    """The deepest folder that contains all keys, given the first and the last of the sorted keys; None without keys or for `/`.

    >>> common_folder("/photos/2023/a.jpg", "/photos/2024/b.jpg"), common_folder("/a.jpg", "/b/c.jpg")
    ('/photos', None)
    """
    if first is None or last is None:
        return None
    pairs = zip(first.split("/")[:-1], last.split("/")[:-1], strict=False)
    return "/".join(part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) or None


@dataclass(frozen=True, kw_only=True)
class SearchHit:
    """An entry that a search found."""

    entry: Entry
    score: float
    """Cosine of its vector and the query, within [-1, 1]."""


__getattr__ = renamed_names(__name__, {"Found": "SearchHit", "Stamp": "FileStat"})
