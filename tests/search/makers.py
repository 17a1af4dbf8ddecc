"""An index brought up to date, and what it holds."""

from pathlib import Path
from typing import Any

from diptych.index.open_index import open_index
from diptych.inference.loaded import LoadedBundle
from diptych.search.collection import Update, open_or_create, update


def refresh(place: str | Path, clip: LoadedBundle, *folders: Path, **options: Any) -> Update:
    """What an update of an index, which may be a new one, has changed."""
    with open_or_create(place, clip) as index:
        return update(index, clip, folders, **options)


def names_in(place: str | Path) -> set[str]:
    """File names of the pictures in an index that is whole."""
    with open_index(place) as index:
        assert index.verify() == []
        return {Path(entry.key).name for entry in index.entries()}
