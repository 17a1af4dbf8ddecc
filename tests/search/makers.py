"""Update an index, and list the pictures in it."""

from pathlib import Path
from typing import Any

from diptych.index.open_index import open_index
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import Update, open_or_create, update


def refresh(place: str | Path, clip: LoadedBundle, *folders: Path, **options: Any) -> Update:
    """Update an index, or create it, and return what changed."""
    with open_or_create(place, clip) as index:
        return update(index, clip, folders, **options)


def names_in(place: str | Path) -> set[str]:
    """File names of the pictures in an index, which must pass verification."""
    with open_index(place) as index:
        assert index.verify() == []
        return {Path(entry.key).name for entry in index.entries()}
