"""What splits are called."""

_USUAL = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's, which training uses, too.
    "val": "val",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "dev", "test"})
"""Folders with these names are splits and no classes."""


def usual_name(name: str | None) -> str | None:
    """A split's name as Diptych writes it; a name that is not known stays as it is.

    >>> usual_name("Validation"), usual_name("dev"), usual_name("novel"), usual_name(None)
    ('val', 'val', 'novel', None)
    """
    return None if name is None else _USUAL.get(name.strip().lower(), name)
