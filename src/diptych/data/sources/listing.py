"""A source that is a list: what every reader of caption files returns."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import DataError
from diptych.core.sample import Sample


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a caption file."""

    key: str
    path: str
    captions: tuple[str, ...]
    label: int | None = None
    split: str | None = None


class Listing:
    """Samples whose images are files."""

    def __init__(self, records: Sequence[Record], *, classes: tuple[str, ...] = ()) -> None:
        self.records = records
        self.classes = classes
        self.templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        return Sample(key=record.key, image=Path(record.path), captions=record.captions, label=record.label)

    def captions(self, index: int) -> tuple[str, ...]:
        """The sample's captions."""
        return self.records[index].captions

    def key(self, index: int) -> str:
        """The record's key."""
        return self.records[index].key

    def split(self, index: int) -> str | None:
        """The split that the file names, if it names one."""
        return self.records[index].split


def check_images_exist(names: Iterable[str], root: Path, *, where: Path) -> None:
    """Look every image up, one directory listing for each folder that is named.

    Raises:
        DataError: some are not there: how many of how many, and the first three.
    """
    listings: dict[str, frozenset[str]] = {}

    def exists(name: str) -> bool:
        folder, file = os.path.split(root / name)
        if folder not in listings:
            parent = Path(folder)  # Path("") is the working folder.
            listings[folder] = frozenset(os.listdir(parent)) if parent.is_dir() else frozenset()  # noqa: PTH208
        return file in listings[folder]

    all_names = list(names)
    missing = [name for name in all_names if not exists(name)]
    if missing:
        first = ", ".join(missing[:3])
        raise DataError(f"{where}: {len(missing)} of {len(all_names)} images are not under {root}: {first}")
