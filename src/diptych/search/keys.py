"""Paths as users write them, and the keys of an index that they name."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def keys_below(keys: Iterable[str], paths: Sequence[str | Path]) -> list[str]:
    """The keys that are one of the paths, or lie in one of them; in their order.

    A key is the path of an indexed folder, without symbolic links, followed by the names in it, some of which may be links. A
    path may reach it through other links. A link stands for itself if it has entries of its own, and else for what it leads to.
    """
    known = list(keys)
    chosen = set[str]()
    for path in paths:
        found = (_below(known, place) for place in _spellings(path))
        chosen |= next((some for some in found if some), set[str]())
    return [key for key in known if key in chosen]


def _spellings(path: str | Path) -> list[str]:
    """The absolute path with the links of its first folders resolved: of none, of one, ..., at last its own, too."""
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100  (`resolve` would follow links)
    return [os.path.join(os.path.realpath(Path(*parts[:num])), *parts[num:]) for num in range(1, len(parts) + 1)]  # noqa: PTH118


def _below(keys: Iterable[str], place: str) -> set[str]:
    folder = f"{place.rstrip('/')}/"
    return {key for key in keys if key == place or key.startswith(folder)}
