"""`class-folder:DIR`: one folder per class, as in ImageNet, or a zip of them; captions are templates with the class name."""

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import astuple
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from diptych.core.cache import settled_stamp
from diptych.core.errors import DataError
from diptych.core.file_states import FileStates, file_states
from diptych.core.sample import ImageInput
from diptych.data.sources.class_layout import find_layout, natural_key
from diptych.data.sources.location import read_location
from diptych.data.sources.protocol import ColumnSource
from diptych.data.sources.split_names import SPLIT_FOLDERS, usual_name
from diptych.data.sources.templates import FIVE_TEMPLATES, class_names, filled, templates_of
from diptych.data.storage.blocks import RowColumns
from diptych.data.storage.columns import GroupedTexts, NameColumn, TextColumn, named_arrays
from diptych.data.storage.inputs import warn
from diptych.data.storage.oddities import Oddity, OddityCounter, from_plain
from diptych.data.storage.tree import FolderTree, Tree, ZipTree, open_tree


class LabelledPictures(ColumnSource):
    """Images that have a class but no captions of their own."""

    can_be_sampled = True

    def __init__(
        self,
        tree: Tree,
        keys: TextColumn,
        labels: NameColumn,
        splits: NameColumn,
        *,
        templates: tuple[str, ...],
        oddities: tuple[Oddity, ...] = (),
        is_natural: bool = True,
    ) -> None:
        self._names, self._named_splits, self._is_natural = labels, splits, is_natural
        self._number_classes(is_natural=is_natural)
        self.templates, self.oddities = templates, oddities
        self._tree, self._keys = tree, keys
        self._splits, self._split_names = splits.codes(), tuple(splits.names)

    def _number_classes(self, *, is_natural: bool) -> None:
        names = self._names.names
        ordered = sorted(names, key=natural_key) if is_natural else sorted(names)
        self.classes, class_of_label = class_names(ordered, in_order=True)
        number = dict(zip(ordered, class_of_label, strict=True))
        self._labels = np.array([number[name] for name in names], dtype=np.int32)[self._names.codes()]

    def to_arrays(self) -> dict[str, NDArray[Any]] | None:
        """Return the arguments of `from_arrays`, for storage in a file; None if the images are in a zip."""
        if not isinstance(self._tree, FolderTree):
            return None
        facts = {
            "root": str(self._tree.root),
            "templates": self.templates,
            "oddities": [astuple(oddity) for oddity in self.oddities],
            "is_natural": self._is_natural,
        }
        arrays = named_arrays(keys=self._keys, labels=self._names, splits=self._named_splits)
        return {**arrays, "facts": np.array(json.dumps(facts))}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "LabelledPictures":
        """Return the source whose `to_arrays` returned these arrays."""
        facts = json.loads(str(arrays["facts"]))
        return cls(
            FolderTree(Path(facts["root"])),
            TextColumn.from_arrays(arrays["keys_bytes"], arrays["keys_ends"]),
            NameColumn.from_arrays(arrays["labels_names"], arrays["labels_codes"]),
            NameColumn.from_arrays(arrays["splits_names"], arrays["splits_codes"]),
            templates=tuple(facts["templates"]),
            oddities=from_plain(facts["oddities"]),
            is_natural=facts["is_natural"],
        )

    def under_first_rule(self) -> "LabelledPictures":
        """Return the source with its classes in the order of their names as text."""
        source = copy(self)
        source._number_classes(is_natural=False)
        return source

    def __len__(self) -> int:
        return len(self._keys)

    def image(self, index: int) -> ImageInput:
        """Return the path of the image, or its file's content if it is in a zip."""
        return self._tree.image(self._keys[index])

    def captions(self, index: int) -> tuple[str, ...]:
        """Return each template with the name of the class."""
        return filled(self.templates, self.classes[self._labels[index]])

    def key(self, index: int) -> str:
        """Return the path of the image from the root."""
        return self._keys[index]

    def image_size(self, index: int) -> int | None:
        """Return the size of the image file in bytes; None if it is unknown."""
        return self._tree.size(self._keys[index])

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns:
        """Return the keys, captions, labels and splits of several rows."""
        labels = self._labels[rows].astype(np.int64)
        none = GroupedTexts(TextColumn(), np.empty(0, dtype=np.int64), 0)
        captions, counts = none.followed_by(filled(self.templates, name) for name in self.classes).take(labels)
        return RowColumns(self._keys.take(rows), captions, counts, labels, self._splits[rows], self._split_names)

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Return the sizes of several image files in bytes; -1 for missing files."""
        files = self.image_files(rows)
        return super().image_sizes(rows) if files is None else files.sizes

    def image_files(self, rows: NDArray[np.int64], /) -> FileStates | None:
        """Return the states of several image files; None if the images are in a zip."""
        if not isinstance(self._tree, FolderTree):
            return None
        return file_states(self._keys.take(rows).paths(self._tree.root))

    def image_stamp(self) -> str | None:
        """Return the state of the zip file; None if the images are not in a zip."""
        return settled_stamp([self._tree.path]) if isinstance(self._tree, ZipTree) else None


def read_class_folder(location: str) -> LabelledPictures:
    """Read images in `DIR/class/`, or in `DIR/train/class/`, `DIR/val/class/` and so on.

    `?templates=FILE` selects other templates, `?classes=a,b` names the class folders, and `?order=text` sorts the class names
    as text instead of sorting numbers in them by value.

    Raises:
        DataError: the folder or zip does not exist or contains no class folders with images, or splits and classes are mixed.
    """
    path, options = read_location(location, ("templates", "classes", "order"))
    if options.get("order", "text") != "text":
        raise DataError(
            f"{path}: order is '{options['order']}'; it must be text, or be omitted to sort numbers by value"
        )
    templates = templates_of(options) or FIVE_TEMPLATES
    wanted = [normalize("NFC", name) for name in options.get("classes", "").split(",") if name]
    tree, counter = open_tree(path), OddityCounter()
    names = tree.names(counter)
    paths = [name.split("/") for name in names]
    layout = find_layout(paths, where=str(path), wanted=wanted, counter=counter)
    keys, labels, splits, folders = TextColumn(), NameColumn(), NameColumn(), set[str]()
    for name, parts in zip(names, paths, strict=True):
        is_inside = len(parts) > layout.class_depth + 1
        folder = parts[layout.class_depth] if is_inside else ""
        split = parts[layout.class_depth - 1] if layout.has_splits else None
        if wanted and (normalize("NFC", folder) not in wanted or not (split is None or split in SPLIT_FOLDERS)):
            counter.add("pictures outside the folders of ?classes", "left out", name)
            continue
        if not is_inside:
            raise DataError(f"{path}: {name} is not in a class folder")
        folders.add(folder)
        keys.append(name)
        labels.append(normalize("NFC", folder))
        splits.append(usual_name(split))
    if not len(keys):
        raise DataError(f"{path}: holds no class folders with pictures")
    _count_spellings(folders, counter)
    source = LabelledPictures(
        tree, keys, labels, splits, templates=templates, oddities=counter.oddities(), is_natural="order" not in options
    )
    if len(source.classes) == 1:
        text = f"{path}: all pictures are of one class, '{source.classes[0]}'; there is no other class to distinguish"
        warn(text)
    return source


def _count_spellings(folders: set[str], counter: OddityCounter) -> None:
    """Count the folders whose names differ only in their Unicode normalization; they are merged into one class."""
    seen = set[str]()
    for folder in sorted(folders):
        if (name := normalize("NFC", folder)) in seen:
            counter.add("folders whose names differ only in Unicode normalization", "merged", folder)
        seen.add(name)
