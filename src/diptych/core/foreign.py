"""Recognize files and folders that operating systems, notebooks and archivers add to image folders."""

_NAMES = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"})


def is_foreign(path: str) -> bool:
    """Whether a path inside a data set belongs to a tool and not to the data: a hidden file or folder, or a well-known name.

    Args:
        path: path relative to the root of the data set, with slashes.

    >>> [is_foreign(name) for name in ("cats/a.jpg", "./a.jpg", "cats/._a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg")]
    [False, False, True, True, True]
    """
    parts = (part for part in path.split("/") if part not in {"", ".", ".."})
    return any(part.startswith(".") or part.lower() in _NAMES or part.startswith("PaxHeader") for part in parts)
