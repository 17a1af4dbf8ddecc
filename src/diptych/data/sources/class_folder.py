"""`class-folder:DIR`: one folder a class, as in ImageNet; captions are templates around the class's name. Also as a zip."""

from unicodedata import normalize

import numpy as np

from diptych.core.errors import DataError
from diptych.core.sample import Sample
from diptych.data.oddities import Oddity, OddityCounter
from diptych.data.sources.columns import NameColumn, TextColumn
from diptych.data.sources.location import read_location
from diptych.data.sources.protocol import Source
from diptych.data.sources.templates import FIVE_TEMPLATES, filled, readable, templates_of
from diptych.data.sources.tree import Tree, open_tree

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


class LabelledPictures(Source):
    """Pictures with a class each, and no words but the class's name."""

    def __init__(
        self,
        tree: Tree,
        keys: TextColumn,
        labels: NameColumn,
        splits: NameColumn,
        *,
        templates: tuple[str, ...],
        oddities: tuple[Oddity, ...] = (),
    ) -> None:
        order = sorted(range(len(labels.names)), key=labels.names.__getitem__)
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order))
        self.classes = tuple(readable(labels.names[i]) for i in order)
        self.templates, self.oddities = templates, oddities
        self._tree, self._keys = tree, keys
        self._labels = rank[labels.codes()]
        self._splits, self._split_names = splits.codes(), tuple(splits.names)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        key = self._keys[index]
        return Sample(key=key, image=self._tree.image(key), captions=self.captions(index), label=self.label(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """Each template around the class's name."""
        return filled(self.templates, self.classes[self._labels[index]])

    def key(self, index: int) -> str:
        """Path of the picture from the root."""
        return self._keys[index]

    def split(self, index: int) -> str | None:
        """The folder above the classes, if it is called after a split."""
        code = int(self._splits[index])
        return None if code < 0 else self._split_names[code]

    def label(self, index: int) -> int:
        """The picture's class."""
        return int(self._labels[index])

    def image_size(self, index: int) -> int | None:
        """Bytes of the file."""
        return self._tree.size(self._keys[index])


def read_class_folder(location: str) -> LabelledPictures:
    """`DIR/class/picture`, or `DIR/train/class/picture` beside `DIR/val/...`; `?templates=FILE` gives other templates.

    Raises:
        DataError: there is no such folder or zip, or no class folders with pictures in it.
    """
    path, options = read_location(location, ("templates",))
    templates = templates_of(options) or FIVE_TEMPLATES
    tree, counter = open_tree(path), OddityCounter()
    keys, labels, splits = TextColumn(), NameColumn(), NameColumn()
    names = tree.names(counter)
    depth = _depth_of_classes(names)
    for name in names:
        parts = name.split("/")
        if len(parts) < depth + 2:
            raise DataError(f"{path}: {name} lies in no class's folder")
        keys.append(name)
        labels.append(normalize("NFC", parts[depth]))
        splits.append({"valid": "val", "validation": "val"}.get(parts[0], parts[0]) if depth else None)
    if not names:
        raise DataError(f"{path}: holds no class folders with pictures")
    _count_spellings({name.split("/")[depth] for name in names}, counter)
    return LabelledPictures(tree, keys, labels, splits, templates=templates, oddities=counter.oddities())


def _count_spellings(folders: set[str], counter: OddityCounter) -> None:
    """Folders of one class whose names are the same letters in other code points."""
    seen = set[str]()
    for folder in sorted(folders):
        if (name := normalize("NFC", folder)) in seen:
            counter.add("folders whose name another spells in other code points", "merged", folder)
        seen.add(name)


def _depth_of_classes(names: list[str]) -> int:
    """0, or 1 if all folders at the top are called after splits."""
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    return 1 if tops and tops <= _SPLITS else 0
