"""Detect which folder in the paths of images is the class, and define the order of classes."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple
from unicodedata import normalize

from diptych.core.errors import DataError, unknown_name
from diptych.data.sources.split_names import SPLIT_FOLDERS
from diptych.data.storage.oddities import OddityCounter

_MAX_NAMED = 3


class Layout(NamedTuple):
    """The roles of the folders in a path."""

    class_depth: int
    """Number of folders above the class folder."""
    has_splits: bool
    """Whether the folder above the class folder is a split."""


def find_layout(
    paths: Sequence[Sequence[str]], *, where: str, wanted: Collection[str], counter: OddityCounter
) -> Layout:
    """Return the layout of the images. A single folder above the class folders is skipped and counted.

    Args:
        paths: the folders and the file name of each image.
        where: the source, for messages.
        wanted: names of the class folders; empty if all folders are classes.
        counter: counts the skipped folders.

    Raises:
        DataError: folders of splits and other folders are mixed, or a wanted class folder is missing.
    """
    depth = 0
    while _is_lone_folder(paths, depth, wanted):
        counter.add("lone folders above the classes", "looked into", "/".join(paths[0][: depth + 1]))
        depth += 1
    tops = _folders(paths, depth)
    splits = tops & SPLIT_FOLDERS
    if wanted:
        return _layout_of_wanted(paths, depth, where=where, wanted=wanted)
    if splits and tops <= SPLIT_FOLDERS:
        return Layout(depth + 1, has_splits=True)
    if len(splits) > 1:
        others = sorted(tops - SPLIT_FOLDERS)
        named = ", ".join(others[:_MAX_NAMED]) + (", ..." if len(others) > _MAX_NAMED else "")
        raise DataError(
            f"{where}: {' and '.join(sorted(splits))} are next to {named}, so they may be splits or classes; name the "
            "folders that are classes with ?classes=a,b"
        )
    return Layout(depth, has_splits=False)


def _is_lone_folder(paths: Sequence[Sequence[str]], depth: int, wanted: Collection[str]) -> bool:
    """Return whether a depth has a single folder that contains no images directly and is neither a split nor wanted."""
    if not paths or len(paths[0]) < depth + 3:
        return False
    name = paths[0][depth]
    if name in SPLIT_FOLDERS or normalize("NFC", name) in wanted:
        return False
    return all(len(parts) >= depth + 3 and parts[depth] == name for parts in paths)


def _layout_of_wanted(paths: Sequence[Sequence[str]], depth: int, *, where: str, wanted: Collection[str]) -> Layout:
    tops = _folders(paths, depth)
    if set(wanted) <= tops:
        return Layout(depth, has_splits=False)
    inside = _folders([parts for parts in paths if parts[depth] in SPLIT_FOLDERS], depth + 1)
    known = inside if inside & set(wanted) else tops | inside
    for name in wanted:
        if name not in inside:
            raise DataError(f"{where}: {unknown_name('class folder', name, sorted(known))}")
    return Layout(depth + 1, has_splits=True)


def _folders(paths: Sequence[Sequence[str]], depth: int) -> set[str]:
    """Return the names of the folders at a depth, without images at that depth."""
    return {normalize("NFC", name) for name in {parts[depth] for parts in paths if len(parts) > depth + 1}}


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return the sort key of a class name; numbers within names are sorted by value.

    >>> sorted(["class10", "class2", "b", "7", "10"], key=natural_key)
    ['7', '10', 'b', 'class2', 'class10']
    """
    parts = re.split(r"([0-9]+)", name)
    digits = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
    return digits, name
