"""A source of image files with captions, which all readers of caption files return."""

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.core.errors import DataError
from diptych.core.file_states import FileStates, file_states
from diptych.data.sources.protocol import ColumnSource
from diptych.data.sources.templates import FIVE_TEMPLATES, captions_or_filled, class_names
from diptych.data.storage.blocks import RowColumns, TextBlock
from diptych.data.storage.columns import GroupedTexts, NameColumn, TextColumn, named_arrays
from diptych.data.storage.inputs import reads, warn
from diptych.data.storage.oddities import OddityCounter, from_plain

_skips_missing: ContextVar[bool] = ContextVar("skips_missing", default=False)


def skips_missing() -> bool:
    """Return whether readers leave out rows whose image is missing."""
    return _skips_missing.get()


@contextmanager
def missing_images(*, skip: bool) -> Iterator[None]:
    """Context manager in which readers of caption files leave out rows whose image is missing, with a warning, if `skip`."""
    token = _skips_missing.set(skip)
    try:
        yield
    finally:
        _skips_missing.reset(token)


class Listing(ColumnSource):
    """Samples whose images are files; the key is the path from the root, or the absolute path of a file outside the root."""

    can_be_sampled = True
    was_absolute = False
    """Whether all paths in the caption file were absolute."""

    def __init__(
        self,
        root: Path,
        keys: TextColumn,
        captions: GroupedTexts,
        *,
        labels: NDArray[np.int32],
        classes: tuple[str, ...],
        splits: NDArray[np.int32],
        split_names: tuple[str, ...],
        templates: tuple[str, ...] = (),
    ) -> None:
        self.root = root
        self.classes = classes
        self._given_templates = templates
        self.templates = templates or (() if captions.filled().all() else FIVE_TEMPLATES)
        self._keys, self._captions = keys, captions
        self._labels, self._splits, self._split_names = labels, splits, split_names

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arguments of `from_arrays`, for storage in a file."""
        facts = {
            "root": str(self.root),
            "classes": self.classes,
            "split_names": self._split_names,
            "templates": self._given_templates,
            "oddities": [astuple(oddity) for oddity in self.oddities],
            "was_absolute": self.was_absolute,
        }
        arrays = named_arrays(keys=self._keys, captions=self._captions)
        return {**arrays, "labels": self._labels, "splits": self._splits, "facts": np.array(json.dumps(facts))}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Listing":
        """Return the listing whose `to_arrays` returned these arrays."""
        facts = json.loads(str(arrays["facts"]))
        listing = cls(
            Path(facts["root"]),
            TextColumn.from_arrays(arrays["keys_bytes"], arrays["keys_ends"]),
            GroupedTexts.from_arrays({name: arrays[f"captions_{name}"] for name in GroupedTexts.ARRAYS}),
            labels=arrays["labels"],
            classes=tuple(facts["classes"]),
            splits=arrays["splits"],
            split_names=tuple(facts["split_names"]),
            templates=tuple(facts["templates"]),
        )
        listing.oddities, listing.was_absolute = from_plain(facts["oddities"]), facts["was_absolute"]
        return listing

    def __len__(self) -> int:
        return len(self._keys)

    def image(self, index: int) -> Path:
        """Return the path of the image."""
        return self.root / self._keys[index]

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the sample's captions, or templates with its class name if it has none or if templates are given."""
        label = self.label(index)
        name = None if label is None else self.classes[label]
        return captions_or_filled(self._captions[index], name, self._given_templates)

    def key(self, index: int) -> str:
        """Return the path of the image from the root."""
        return self._keys[index]

    def image_size(self, index: int) -> int | None:
        """Return the size of the image file in bytes; None if it cannot be read."""
        try:
            return os.stat(os.path.join(self.root, self._keys[index])).st_size  # noqa: PTH116, PTH118  (three times as fast)
        except OSError:
            return None

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Return the sizes of several image files in bytes; -1 for missing files."""
        return self.image_files(rows).sizes

    def image_files(self, rows: NDArray[np.int64], /) -> FileStates:
        """Return the states of several image files."""
        return file_states(self._keys.take(rows).paths(self.root))

    def under_first_rule(self) -> "Listing":
        """Return the listing with keys relative to the common folder of all paths, if all paths were absolute."""
        if not self.was_absolute:
            return self
        paths = [os.path.join(os.path.abspath(self.root), key) for key in self._keys]  # noqa: PTH100, PTH118
        common = os.path.commonpath({path.rpartition("/")[0] or "/" for path in paths})
        listing = copy(self)
        listing.root = Path(common)
        listing._keys = TextColumn(path[len(common.rstrip("/")) + 1 :] for path in paths)
        return listing

    def _filled(self, rows: NDArray[np.int64]) -> tuple[TextBlock, NDArray[np.int64]]:
        """Return the captions of several rows, with templates filled in, and the number of captions of each row."""
        of_classes = (captions_or_filled((), name, self._given_templates) for name in self.classes)
        labels, has_own = self._labels[rows], self._captions.filled()[rows]
        is_filled = (labels >= 0) & (~has_own | bool(self._given_templates))
        return self._captions.followed_by(of_classes).take(np.where(is_filled, len(self) + labels, rows))

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns:
        """Return the keys, captions, labels and splits of several rows."""
        captions, counts = self._captions.take(rows) if not self.templates else self._filled(rows)
        labels = self._labels[rows].astype(np.int64)
        return RowColumns(self._keys.take(rows), captions, counts, labels, self._splits[rows], self._split_names)


class ListingBuilder:
    """Builds a `Listing` from rows; the captions of rows with the same image are merged.

    The key of an image is its path from the root, or the absolute path if it is outside the root.

    >>> builder = ListingBuilder(Path("photos"), where=Path("captions.csv"))
    >>> for key, caption in (("a.jpg", "one"), ("b.jpg", "two"), ("a.jpg", "three")):
    ...     builder.add(key, [caption])
    >>> listing = builder.build(check_images=False)
    >>> [listing.captions(i) for i in range(len(listing))]
    [('one', 'three'), ('two',)]
    """

    def __init__(self, root: Path, *, where: Path, templates: tuple[str, ...] = ()) -> None:
        self.root = root
        self.templates = templates
        self.where = where
        self._keys, self._captions = TextColumn(), TextColumn()
        self._row_of_caption = array("q")
        self._hashes = array("q")  # Hashes of the keys find repeated images without a dict of a million texts.
        self._labels, self._splits = NameColumn(), NameColumn()
        self._labelled, self._with_split = array("q"), array("q")  # Only rows that have one: most files have none.
        self._prefix = os.path.abspath(root).rstrip("/") + "/"  # noqa: PTH100  (links stay as they are)
        self._num_absolute = 0
        self.oddities = OddityCounter()

    def add(self, key: str, captions: Sequence[str], *, label: str | None = None, split: str | None = None) -> None:
        """Add one row of the file. If rows of the same image have different labels or splits, the last one is used.

        Empty captions are left out and counted.
        """
        row = len(self._hashes)
        if key.startswith("/"):
            self._num_absolute += 1
            key = key.removeprefix(self._prefix)
        self._keys.append(key)
        self._hashes.append(hash(key))
        for caption in captions:
            if not caption.strip():
                self.oddities.add("empty captions", "left out", key)
                continue
            self._captions.append(caption)
            self._row_of_caption.append(row)
        if label is not None:
            self._labels.append(label)
            self._labelled.append(row)
        if split is not None:
            self._splits.append(split)
            self._with_split.append(row)

    def build(self, *, check_images: bool = True) -> Listing:
        """Return the listing, with a warning if rows of the same image have different labels or splits.

        Images that have neither caption nor label are left out and counted.

        Args:
            check_images: whether to check that the image files exist.

        Raises:
            DataError: there are no rows, no image has a caption or label, or images are missing. The message gives their
                number and the first three.
        """
        if not len(self._keys):
            raise DataError(f"{self.where}: holds no rows")
        was_absolute = self._num_absolute == len(self._keys)
        _, first_rows, group_of_row = np.unique(np.array(self._hashes), return_index=True, return_inverse=True)
        in_file_order = np.argsort(first_rows, kind="stable")
        sample_of_group = np.empty_like(in_file_order)
        sample_of_group[in_file_order] = np.arange(len(in_file_order))
        first_rows = first_rows[in_file_order]
        is_kept = self._has_text(sample_of_group[group_of_row], first_rows)
        if check_images and _skips_missing.get():
            is_kept &= self._has_image(first_rows)
        number = np.where(is_kept, np.cumsum(is_kept) - 1, -1)
        sample_of_row, first_rows = number[sample_of_group[group_of_row]], first_rows[number >= 0]
        is_whole = len(first_rows) == len(self._keys)
        keys = self._keys if is_whole else TextColumn(self._keys[int(row)] for row in first_rows)
        if check_images:
            check_images_exist(keys, self.root, where=self.where)
        sample_of_caption = sample_of_row[np.array(self._row_of_caption, dtype=np.int64)]
        labels = self._last_named("label", self._labels, sample_of_row[np.array(self._labelled, dtype=np.int64)], keys)
        splits = self._last_named(
            "split", self._splits, sample_of_row[np.array(self._with_split, dtype=np.int64)], keys
        )
        used = np.unique(labels[labels >= 0])
        classes, class_of_used = class_names([self._labels.names[code] for code in used])
        class_of_label = np.full(len(self._labels.names) + 1, -1, dtype=np.int32)
        class_of_label[used] = class_of_used
        listing = Listing(
            self.root,
            keys,
            GroupedTexts(self._captions, sample_of_caption, len(keys)),
            labels=class_of_label[labels],  # The last element is -1, for no label.
            classes=classes,
            splits=splits,
            split_names=tuple(self._splits.names),
            templates=self.templates,
        )
        listing.oddities = self.oddities.oddities()
        listing.was_absolute = was_absolute
        return listing

    def _has_text(self, sample_of_row: NDArray[np.int64], first_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return, for each sample, whether it has a caption or a label; those that have neither are counted.

        Raises:
            DataError: no sample has a caption or a label.
        """
        has_any = np.zeros(len(first_rows), dtype=bool)
        for rows in (self._row_of_caption, self._labelled):
            has_any[sample_of_row[np.array(rows, dtype=np.int64)]] = True
        if not has_any.any():
            raise DataError(
                f"{self.where}: none of its {len(has_any)} images has a caption or a label: {self._keys[0]}"
            )
        for row in first_rows[~has_any].tolist():
            self.oddities.add("images with neither caption nor label", "left out", self._keys[row])
        return has_any

    def _has_image(self, first_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return, for each sample, whether its image exists; missing images are counted, with a warning.

        Raises:
            DataError: no image exists.
        """
        there = images_there(TextColumn(self._keys[int(row)] for row in first_rows), self.root)
        missing = [self._keys[row] for row in first_rows[~there].tolist()]
        if missing:
            what = f"{len(missing)} of {len(there)} images are not under {self.root}"
            if not there.any():
                raise DataError(f"{self.where}: {what}: {', '.join(missing[:3])}")
            text = f"{self.where}: {what}; they are left out: {', '.join(missing[:3])}"
            warn(text)
        for key in missing:
            self.oddities.add("images that are missing", "left out", key)
        return there

    def _last_named(
        self, what: str, names: NameColumn, samples: NDArray[np.int64], keys: TextColumn
    ) -> NDArray[np.int32]:
        out = np.full(len(keys), -1, dtype=np.int32)
        is_kept = samples >= 0
        samples, codes = samples[is_kept], names.codes()[is_kept]
        out[samples] = codes  # For repeated indices, the last value is assigned.
        conflicts = np.unique(samples[out[samples] != codes])
        if len(conflicts):
            first = f"{keys[int(conflicts[0])]} ({names.names[out[conflicts[0]]]})"
            which = f"rows of {len(conflicts)} of {len(keys)} images disagree on the {what}"
            warn(f"{self.where}: {which}; the last one is used: {first}")
        return out


def check_images_exist(keys: TextColumn, root: Path, *, where: Path) -> None:
    """Check that all images exist, with one directory listing per folder.

    Raises:
        DataError: images are missing (the message gives their number and the first three), or a folder cannot be listed.
    """
    there = images_there(keys, root)
    missing = np.flatnonzero(~there)
    if len(missing):
        first = ", ".join(keys[int(row)] for row in missing[:3])
        raise DataError(
            f"{where}: {len(missing)} of {len(keys)} images are not under {root}: {first}. Fix the paths, or train "
            "without these images: --skip-missing"
        )


def images_there(keys: TextColumn, root: Path) -> NDArray[np.bool_]:
    """Return, for each image, whether it exists.

    Raises:
        DataError: a folder cannot be listed.
    """
    folders: dict[str, int] = {}
    folder_of, hashes = array("i"), array("q")
    for key in keys:
        folder, slash, file = key.rpartition("/")
        folder = folder or slash  # The file is in the root of the file system.
        folder_of.append(folders.setdefault(folder, len(folders)))
        hashes.append(hash(file))
    folder_ids, wanted = np.array(folder_of), np.array(hashes)
    there = np.zeros(len(keys), dtype=bool)
    for folder, number in folders.items():
        rows = np.flatnonzero(folder_ids == number) if len(folders) > 1 else np.arange(len(keys))
        there[rows] = np.isin(wanted[rows], _file_hashes(root / folder))
    return there


def _file_hashes(folder: Path) -> NDArray[np.int64]:
    reads(folder)
    try:
        with os.scandir(folder) as entries:
            return np.array([hash(entry.name) for entry in entries], dtype=np.int64)
    except PermissionError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    except (OSError, ValueError):  # ValueError: a name that no file can have, such as one with a null byte.
        return np.empty(0, dtype=np.int64)
