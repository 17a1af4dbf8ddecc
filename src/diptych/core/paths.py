"""The kind of file at a path. Every command imports this module, so it has few imports itself."""

import os
import stat
from pathlib import Path
from typing import Literal


def path_kind(text: str | Path) -> Literal["file", "folder", "other"] | None:
    """Return the kind of file at a path, after following links; None if nothing is there or the text is not a valid path.

    Use it for user input that may not be a path: `Path.is_file` raises if the text is too long for a file name.

    >>> path_kind("a long text " * 1000), path_kind("/")
    (None, 'folder')
    """
    try:
        mode = os.stat(text).st_mode  # noqa: PTH116  (equivalent to Path.stat, and accepts both types)
    except (OSError, ValueError):
        return None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"
