"""Usual names of splits."""

_USUAL = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's split name for additional training data.
    "val": "val",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "dev", "test"})
"""Folders with these names are splits, not classes."""


def usual_name(name: str | None) -> str | None:
    """Return Diptych's name of a split; an unknown name is returned unchanged.

    >>> usual_name("Validation"), usual_name("dev"), usual_name("novel"), usual_name(None)
    ('val', 'val', 'novel', None)
    """
    return None if name is None else _USUAL.get(name.strip().lower(), name)
