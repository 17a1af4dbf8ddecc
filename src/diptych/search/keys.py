"""Find the keys of an index for paths that a user wrote."""

import os
from collections.abc import Sequence
from pathlib import Path

from diptych.core.deprecated import renamed_parameter
from diptych.index.filters import Filter
from diptych.index.protocol import Index


@renamed_parameter("chosen", "selected")
def keys_below(index: Index, paths: Sequence[str | Path], selected: Filter | None = None) -> list[str]:
    """The keys that equal one of the paths or lie below one of them, in order; of the entries that a filter lets through.

    A key is the path of an indexed folder, without symbolic links, followed by names in the folder, some of which may be links.
    A path may reach it through other links. A link selects its own entries if it has any, otherwise those of its target.
    """
    found = set[str]()
    for path in paths:
        places = (index.keys_at(place) for place in _spellings(path))
        found.update(next((keys for keys in places if keys), ()))
    return sorted(found if selected is None else found.intersection(index.keys(selected)))


def _spellings(path: str | Path) -> list[str]:
    """Variants of the absolute path, in which links are resolved in the first 1, 2, ... and finally all of its parts."""
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100  (`resolve` would follow links)
    return [os.path.join(os.path.realpath(Path(*parts[:num])), *parts[num:]) for num in range(1, len(parts) + 1)]  # noqa: PTH118
