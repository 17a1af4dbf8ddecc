"""What a text means as a path. It is imported at every start, so it imports little."""

import os
import stat
from pathlib import Path
from typing import Literal


def path_kind(text: str | Path) -> Literal["file", "folder", "other"] | None:
    """What lies at a path, links followed; None if nothing does, or if the text cannot be a path or cannot be looked up.

    Use it for what a user wrote and what may be no path at all: `Path.is_file` raises for a text that is too long for a name.

    >>> path_kind("a long text " * 1000), path_kind("/")
    (None, 'folder')
    """
    try:
        mode = os.stat(text).st_mode  # noqa: PTH116  (the same with a Path)
    except (OSError, ValueError):
        return None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"
