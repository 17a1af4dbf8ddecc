"""`hf:NAME_OR_DIR`: a dataset of Hugging Face `datasets`, from a folder of `save_to_disk`, from files, or from the hub.

Captions and labels are read once, when the dataset is opened. Images are read from the Arrow tables, as bytes or paths, when a
sample is accessed; `datasets` never decodes them.
"""

import re
import warnings
from array import array
from collections.abc import Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.core.errors import ConfigError, DataError, DiptychWarning, ImageError
from diptych.data.sources.hugging_face_columns import OPTIONS, Columns, find_columns
from diptych.data.sources.location import read_location
from diptych.data.sources.protocol import ColumnSource
from diptych.data.sources.templates import FIVE_TEMPLATES, captions_or_filled, class_names, templates_of
from diptych.data.storage.blocks import RowColumns
from diptych.data.storage.columns import GroupedTexts, NameColumn, TextColumn
from diptych.data.storage.oddities import OddityCounter

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_OWN_NAMES = {"validation": "val", "valid": "val"}
_BATCH = 1000


class HuggingFaceSource(ColumnSource):
    """The rows of one or several tables that have an image, and a caption or a label.

    A key consists of the name of the table's split and the row number. The split of a row is its value in the column
    `split`, otherwise that of its table; `validation` and `valid` become `val`.
    """

    can_be_sampled = True

    def __init__(
        self, tables: Mapping[str, Any], options: Mapping[str, str], *, where: str, templates: tuple[str, ...] = ()
    ) -> None:
        self._rows = _Rows()
        self._names, self._pictures, self._image, ends = tuple(tables), [], list[str](), list[int]()
        classes: set[tuple[str, ...]] = set()
        for name, table in tables.items():
            columns = find_columns(table.features, options, where=where)
            self._rows.add(table, columns, split=_OWN_NAMES.get(name, name) or None)
            self._pictures.append(_pictures(table, columns.image))
            self._image.append(columns.image)
            classes |= {columns.classes} if columns.label else set()
            ends.append(len(self._rows.numbers))
        self._ends = np.array(ends, dtype=np.int64)
        self._captions = GroupedTexts(self._rows.texts, np.array(self._rows.row_of_text, dtype=np.int64), len(self))
        self._splits, self._split_names = self._rows.splits.codes(), self._rows.splits.names
        self._check_not_empty(where)
        named = next(iter(classes)) if len(classes) == 1 else ()
        self.classes, class_of_label = class_names(named or self._rows.labels.names, in_order=bool(named))
        number = dict(zip(named or self._rows.labels.names, class_of_label.tolist(), strict=True))
        label_of_code = np.array([*(number[name] for name in self._rows.labels.names), -1], dtype=np.int64)
        self._labels: NDArray[np.int64] = label_of_code[self._rows.labels.codes()]
        self._given_templates = templates
        self.oddities = self._rows.oddities.oddities()
        self.templates = templates or (() if self._captions.filled().all() else FIVE_TEMPLATES)

    def _check_not_empty(self, where: str) -> None:
        num_seen = self._rows.num_seen
        if not len(self):
            lacks = "a caption or a label" if self._rows.num_without_picture < num_seen else "a picture"
            raise DataError(f"{where}: none of its {num_seen} rows has {lacks}")
        if self._rows.num_without_picture:
            text = f"{where}: {self._rows.num_without_picture} of {num_seen} rows have no picture and are left out"
            warnings.warn(text, DiptychWarning, stacklevel=4)

    def __len__(self) -> int:
        return len(self._rows.numbers)

    def image(self, index: int) -> bytes | Path:
        """Return the content of the image file or its path, as stored in the table."""
        table = self._table(index)
        try:
            value = self._pictures[table][self._rows.numbers[index]][self._image[table]]
        except Exception as error:  # Arrow raises errors of several classes for damaged files.
            raise ImageError(f"{self.key(index)}: cannot be read from its table ({error})") from None
        if isinstance(value, bytes):
            return value
        return Path(value["path"]) if value["bytes"] is None else bytes(value["bytes"])

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the row's captions, or templates with its class name if it has none or if templates are given."""
        label = self.label(index)
        name = None if label is None else self.classes[label]
        return captions_or_filled(self._captions[index], name, self._given_templates)

    def key(self, index: int) -> str:
        """Return the split's name in the dataset and the row number within it, as in `train/000000123`."""
        name = self._names[self._table(index)]
        return f"{name}{'/' if name else ''}{self._rows.numbers[index]:09d}"

    def image_size(self, index: int) -> int | None:
        """Return the size in bytes of the stored image, or of the file whose path is stored; None if it cannot be read."""
        if self._rows.sizes[index] >= 0:
            return self._rows.sizes[index]
        try:
            return Path(str(self.image(index))).stat().st_size
        except (OSError, ImageError):
            return None

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns | None:
        """Return the keys, captions, labels and splits of several rows; None if captions are made from templates."""
        if self.templates:
            return None
        captions, counts = self._captions.take(rows)
        keys = TextColumn(map(self.key, rows.tolist())).take(np.arange(len(rows)))
        return RowColumns(keys, captions, counts, self._labels[rows], self._splits[rows], self._split_names)

    def _table(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))


class _Rows:
    """The columns of all splits, concatenated, without the images."""

    def __init__(self) -> None:
        self.numbers, self.sizes = array("q"), array("q")
        self.texts, self.row_of_text = TextColumn(), array("q")
        self.labels, self.splits = NameColumn(), NameColumn()
        self.num_without_picture, self.num_seen = 0, 0
        self.oddities = OddityCounter()

    def add(self, table: Any, columns: Columns, *, split: str | None) -> None:
        """Add all rows of a table that have an image."""
        rows = table.with_format("arrow").select_columns(
            list({columns.image: 0} | dict.fromkeys(columns.without_image()))
        )
        for start, batch in zip(range(0, len(table), _BATCH), rows.iter(batch_size=_BATCH), strict=True):
            sizes, is_there = _sizes(batch.column(columns.image))
            values = {name: batch.column(name).to_pylist() for name in columns.without_image()}
            for i in np.flatnonzero(is_there).tolist():
                texts = list(chain.from_iterable(self._texts(values[name][i], start + i) for name in columns.captions))
                label = _label(values[columns.label][i], columns.classes) if columns.label else None
                if not texts and label is None:
                    self.oddities.add("images with neither caption nor label", "left out", f"row {start + i}")
                    continue
                for text in texts:
                    self.row_of_text.append(len(self.numbers))
                    self.texts.append(text)
                self.labels.append(label)
                own = values[columns.split][i] if columns.split else None
                self.splits.append(_OWN_NAMES.get(own, own) if own else split)
                self.numbers.append(start + i)
                self.sizes.append(sizes[i])
            self.num_without_picture += len(batch) - int(is_there.sum())
            self.num_seen += len(batch)

    def _texts(self, value: str | list[str | None] | None, row: int) -> list[str]:
        """Return the captions of a cell that are not empty."""
        texts = value if isinstance(value, list) else [value]
        kept = [text.strip() for text in texts if text and text.strip()]
        if len(kept) < len(texts):
            self.oddities.add("empty captions", "left out", f"row {row}", num=len(texts) - len(kept))
        return kept


def _label(value: str | int | None, classes: tuple[str, ...]) -> str | None:
    if isinstance(value, int):
        return classes[value] if value >= 0 else None  # Unlabeled test splits use -1.
    return value or None


def _sizes(column: Any) -> tuple[list[int], Any]:
    """Return the size of each image in bytes (-1 if only a path is stored), and whether it exists, without reading images."""
    import pyarrow  # noqa: PLC0415  (of the extra)
    from pyarrow import compute  # noqa: PLC0415

    is_struct = pyarrow.types.is_struct(column.type)
    content = compute.struct_field(column, "bytes") if is_struct else column
    is_there = compute.is_valid(content)
    if is_struct and column.type.get_field_index("path") >= 0:
        is_there = compute.or_(is_there, compute.is_valid(compute.struct_field(column, "path")))
    sizes = compute.fill_null(compute.binary_length(content), -1)
    return sizes.to_pylist(), is_there.to_numpy()


def _pictures(table: Any, name: str) -> Any:
    """Return the table with only its image column, which is returned as stored."""
    from datasets import Image, Value  # noqa: PLC0415  (an extra)

    alone = table.with_format(None).select_columns([name])
    return alone if isinstance(table.features[name], Value) else alone.cast_column(name, Image(decode=False))


def read_hf(location: str) -> HuggingFaceSource:
    """Read `NAME_OR_DIR?image=COL&caption=COL&label=COL&split=NAME&config=NAME&templates=FILE`; all options are optional.

    Raises:
        ConfigError: the extra is not installed.
        DataError: the dataset does not exist or cannot be opened, or it has no columns of images with captions or labels.
    """
    try:
        import_module("datasets")
    except ImportError:
        raise ConfigError("hf: needs an extra: pip install 'diptych[datasets]'") from None
    path, options = read_location(location, OPTIONS)
    where = f"hf:{path}"
    tables = as_tables(_opened(path, options, where), where=where)
    wanted = options.get("split")
    if wanted is not None and wanted not in tables:
        sizes = ", ".join(f"{name} ({len(table)})" for name, table in tables.items() if name)
        raise DataError(f"{where}: has no split '{wanted}'; it has: {sizes or 'none'}")
    tables = {wanted: tables[wanted]} if wanted is not None else tables
    return HuggingFaceSource(tables, options, where=where, templates=templates_of(options))


def as_tables(opened: Any, *, where: str) -> dict[str, Any]:
    """Return the tables of a `Dataset` or `DatasetDict` by split name; the name is empty if the split is unknown.

    Raises:
        DataError: the object is an `IterableDataset`, or of another class.
    """
    from datasets import Dataset, DatasetDict  # noqa: PLC0415  (an extra)

    if isinstance(opened, DatasetDict):
        return {str(name): table for name, table in opened.items()}
    if isinstance(opened, Dataset):
        named = re.match(r"\w+(?=$|\[)", str(opened.split or ""))  # It may have a slice, as in train[:10%].
        return {named.group() if named else "": opened}
    raise DataError(f"{where}: is {type(opened).__name__}, not a Dataset; streamed sets have no random access")


def _opened(path: Path, options: Mapping[str, str], where: str) -> Any:
    import datasets  # noqa: PLC0415  (an extra)

    config = options.get("config")
    is_saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if config and (is_saved or path.is_file()):
        raise DataError(f"{where}: has no configs; option 'config' is for folders of files and for sets of the hub")
    try:
        if is_saved:
            return datasets.load_from_disk(str(path))
        if path.is_dir():
            return datasets.load_dataset(str(path.absolute()), config)
        if path.is_file() and path.suffix in _BUILDERS:
            return datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path.absolute()))
        if not path.is_file() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path)):
            return datasets.load_dataset(str(path), config)
    except Exception as error:  # Arrow, the network, the hub and the operating system raise many classes.
        raise _not_opened(path, error, where) from None
    if path.is_file():
        raise DataError(f"{where}: is not a file that hf: reads; supported suffixes are {', '.join(_BUILDERS)}")
    raise DataError(f"{where}: no such file or folder, and not the name of a dataset on the hub, such as hf:OWNER/NAME")


def _not_opened(path: Path, error: Exception, where: str) -> DataError:
    """Return an error with the message of `datasets` on one line, and advice."""
    reason = (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
    kind = type(error).__name__
    if path.is_dir() and kind in {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return DataError(f"{where}: contains no dataset: no folder of save_to_disk, no parquet files, no pictures")
    if path.exists():
        return DataError(f"{where}: cannot be opened ({reason})")
    if kind == "DatasetNotFoundError":
        return DataError(
            f"{where}: neither a folder nor a dataset on the hub; for a private one log in with `hf auth login`"
        )
    if isinstance(error, ConnectionError) or "Offline" in kind:
        way_out = f"where it can, load_dataset('{path}').save_to_disk('DIR'), then --data hf:DIR"
        return DataError(
            f"{where}: no such folder, nor in the cache, and the hub cannot be reached ({reason}); {way_out}"
        )
    return DataError(f"{where}: cannot be opened ({reason}); a config is named by {where}?config=NAME")
