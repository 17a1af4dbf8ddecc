"""Find the keys of an index for paths that a user wrote."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def keys_below(keys: Iterable[str], paths: Sequence[str | Path]) -> list[str]:
    """The keys that equal one of the paths or lie below one of them, in the order of `keys`.

    A key is the path of an indexed folder, without symbolic links, followed by names in the folder, some of which may be links.
    A path may reach it through other links. A link selects its own entries if it has any, otherwise those of its target.
    """
    known = list(keys)
    chosen = set[str]()
    for path in paths:
        found = (_below(known, place) for place in _spellings(path))
        chosen |= next((some for some in found if some), set[str]())
    return [key for key in known if key in chosen]


def _spellings(path: str | Path) -> list[str]:
    """Variants of the absolute path, in which links are resolved in the first 1, 2, ... and finally all of its parts."""
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100  (`resolve` would follow links)
    return [os.path.join(os.path.realpath(Path(*parts[:num])), *parts[num:]) for num in range(1, len(parts) + 1)]  # noqa: PTH118


def _below(keys: Iterable[str], place: str) -> set[str]:
    folder = f"{place.rstrip('/')}/"
    return {key for key in keys if key == place or key.startswith(folder)}
