"""Find the keys of an index for paths given by a user."""

import os
from collections.abc import Sequence
from pathlib import Path

from diptych.core.deprecation import renamed_parameter
from diptych.index.filters import Filter
from diptych.index.protocol import Index


@renamed_parameter("chosen", "selected")
def keys_below(index: Index, paths: Sequence[str | Path], selected: Filter | None = None) -> list[str]:
    """The sorted keys of the pictures and folders with the given paths.

    A key is the resolved path of an indexed folder, followed by names in the folder, some of which may be symbolic links. A
    given path may use other links. A link selects its own entries if there are any, and otherwise those of its target.

    Args:
        index: the index to search.
        paths: paths of pictures or folders. A folder selects all pictures below it.
        selected: filter that the entries must match; None for all entries.
    """
    found = set[str]()
    for path in paths:
        places = (index.keys_at(place) for place in _spellings(path))
        found.update(next((keys for keys in places if keys), ()))
    return sorted(found if selected is None else found.intersection(index.keys(selected)))


def _spellings(path: str | Path) -> list[str]:
    """Variants of the absolute path, with symbolic links resolved in its first part, its first two parts, ..., all parts."""
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100  (`resolve` would follow links)
    return [os.path.join(os.path.realpath(Path(*parts[:num])), *parts[num:]) for num in range(1, len(parts) + 1)]  # noqa: PTH118
