"""`packed:DIR`: images that `diptych data pack` has decoded and resized, mapped into memory.

A pack is a folder of shards. A shard consists of `00000.pixels`, the concatenated bytes of the images, each of shape
(height, width, 3), and `00000.npz`, everything else. `pack.json` describes the source of the pack and, once the pack is
complete, contains the checksum of each shard.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from diptych.core.cache import settled_stamp
from diptych.core.errors import ConfigError, DataError, ImageError
from diptych.core.program import command
from diptych.core.settings import read_json
from diptych.data.sources.location import existing_folder
from diptych.data.sources.protocol import ColumnSource
from diptych.data.sources.templates import class_names
from diptych.data.storage.blocks import RowColumns, by_stretch, joined, ranges
from diptych.data.storage.columns import NameColumn, TextColumn, locate, named_arrays

PACK = "pack.json"
FORMAT_VERSION = 1
_MAX_OPEN = 256
"""Maximum number of shards that a process maps at the same time; each uses a file descriptor."""


@dataclass
class ShardTable:
    """The samples of one shard, without their pixels."""

    keys: TextColumn = field(default_factory=TextColumn)
    captions: TextColumn = field(default_factory=TextColumn)
    caption_ends: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    """Label of each sample; -1 for none."""
    splits: NameColumn = field(default_factory=NameColumn)
    file_sizes: list[int] = field(default_factory=list)
    """Size in bytes of each original image file; -1 if unknown."""
    shapes: list[tuple[int, int]] = field(default_factory=list)
    """(height, width) of each image."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason) of each sample that could not be read."""

    @property
    def num_bytes(self) -> int:
        """Size of the shard's pixels in bytes."""
        return 3 * sum(height * width for height, width in self.shapes)

    def save(self, path: Path) -> None:
        """Write the table to an `.npz` file."""
        arrays = {
            "caption_ends": np.array(self.caption_ends, dtype=np.int64),
            "labels": np.array(self.labels, dtype=np.int64),
            "file_sizes": np.array(self.file_sizes, dtype=np.int64),
            "shapes": np.array(self.shapes, dtype=np.int64).reshape(-1, 2),
            "skipped": np.array(json.dumps(self.skipped)),
        }
        arrays |= named_arrays(keys=self.keys, captions=self.captions, splits=self.splits)
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # Its other argument is a boolean.

    @classmethod
    def load(cls, path: Path) -> "ShardTable":
        """Return the table that `save` wrote.

        Raises:
            DataError: the file is missing or damaged, or cannot be read.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(
                    keys=TextColumn.from_arrays(arrays["keys_bytes"], arrays["keys_ends"]),
                    captions=TextColumn.from_arrays(arrays["captions_bytes"], arrays["captions_ends"]),
                    splits=NameColumn.from_arrays(arrays["splits_names"], arrays["splits_codes"]),
                    caption_ends=arrays["caption_ends"].tolist(),
                    labels=arrays["labels"].tolist(),
                    file_sizes=arrays["file_sizes"].tolist(),
                    shapes=[(height, width) for height, width in arrays["shapes"].tolist()],
                    skipped=[(key, reason) for key, reason in json.loads(str(arrays["skipped"]))],
                )
        except PermissionError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(
                f"{path}: is missing or damaged ({type(error).__name__}); pack again to repair it"
            ) from None


class PackedSource(ColumnSource):
    """The samples of a pack. Each process maps the shards that it reads."""

    is_decoded = True

    def __init__(self, folder: Path, names: Sequence[str], *, classes: Sequence[str], templates: Sequence[str]) -> None:
        self.classes, class_of_label = class_names(classes, in_order=True)
        self.templates = tuple(templates)
        self._paths = [folder / f"{name}.pixels" for name in names]
        self._tables = [ShardTable.load(folder / f"{name}.npz") for name in names]
        self._starts = np.cumsum([0] + [len(table.keys) for table in self._tables]).tolist()
        stored_labels = [label for table in self._tables for label in table.labels]
        self._labels: NDArray[np.int64] = np.array([*class_of_label, -1], dtype=np.int64)[stored_labels]
        self._offsets = [np.cumsum([0] + [3 * h * w for h, w in table.shapes]).tolist() for table in self._tables]
        for path, table in zip(self._paths, self._tables, strict=True):
            if not path.is_file() or path.stat().st_size != table.num_bytes:
                raise DataError(f"{path}: is missing or truncated; pack again to repair it")
        self._maps: OrderedDict[int, tuple[mmap, NDArray[np.uint8]]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": OrderedDict()}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels, which are mapped into memory."""
        shard, row = locate(self._starts, index)
        offsets, (height, width) = self._offsets[shard], self._tables[shard].shapes[row]
        return self._map(shard)[offsets[row] : offsets[row + 1]].reshape(height, width, 3)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the sample's captions."""
        shard, row = locate(self._starts, index)
        table = self._tables[shard]
        start, end = table.caption_ends[row - 1] if row else 0, table.caption_ends[row]
        return tuple([table.captions[i] for i in range(start, end)])

    def key(self, index: int) -> str:
        """Return the sample's key in the original source."""
        shard, row = locate(self._starts, index)
        return self._tables[shard].keys[row]

    def split(self, index: int) -> str | None:
        """Return the sample's split in the original source."""
        shard, row = locate(self._starts, index)
        return self._tables[shard].splits[row]

    def image_size(self, index: int) -> int | None:
        """Return the size of the original image file in bytes; None if it is unknown."""
        shard, row = locate(self._starts, index)
        size = self._tables[shard].file_sizes[row]
        return None if size < 0 else size

    def image_sizes(self, rows: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Return the sizes of several original image files in bytes; -1 if unknown."""
        sizes = [np.array(self._tables[shard].file_sizes)[numbers] for shard, numbers in by_stretch(self._starts, rows)]
        return np.concatenate(sizes).astype(np.int64) if sizes else np.empty(0, dtype=np.int64)

    def image_stamp(self) -> str | None:
        """Return the states of the shards."""
        return settled_stamp(self._paths)

    def columns(self, rows: NDArray[np.int64], /) -> RowColumns | None:
        """Return the keys, captions, labels and splits of several rows."""
        columns = joined([_columns(self._tables[shard], numbers) for shard, numbers in by_stretch(self._starts, rows)])
        return columns._replace(labels=self._labels[rows])

    def _map(self, shard: int) -> NDArray[np.uint8]:
        """Return the bytes of a shard.

        Raises:
            ImageError: the file is missing or truncated. Reading beyond the end of a mapped file would kill the process.
        """
        path = self._paths[shard]
        try:
            if shard not in self._maps:
                while len(self._maps) >= _MAX_OPEN:
                    self._maps.popitem(last=False)
                with path.open("rb") as file:
                    mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
                self._maps[shard] = mapped, np.frombuffer(mapped, dtype=np.uint8)
            mapped, pixels = self._maps[shard]
            size = mapped.size()  # The current size of the file.
        except (OSError, ValueError) as error:
            raise ImageError(f"{path}: cannot be read ({error})") from None
        if size < self._offsets[shard][-1]:
            raise ImageError(f"{path}: was truncated while it was read; pack again to repair it")
        return pixels


def _columns(table: ShardTable, numbers: NDArray[np.int64]) -> RowColumns:
    ends = np.array(table.caption_ends, dtype=np.int64)
    counts = np.diff(ends, prepend=0)[numbers]
    return RowColumns(
        keys=table.keys.take(numbers),
        captions=table.captions.take(np.arange(len(table.captions))[ranges(ends[numbers] - counts, counts)]),
        num_captions=counts,
        labels=np.array(table.labels, dtype=np.int64)[numbers],
        splits=table.splits.take(numbers),
        split_names=table.splits.names,
    )


def read_packed(location: str) -> PackedSource:
    """Read a complete pack that `diptych data pack` has written.

    Raises:
        DataError: there is no pack, it is incomplete, or a shard is missing or has the wrong size.
    """
    folder = existing_folder(Path(location), kind="packed")
    meta = read_pack(folder)
    if meta is None:
        raise DataError(f"{folder}: holds no {PACK}; {command('data', 'pack')} writes one")
    if not meta.get("checksums"):
        raise DataError(f"{folder}: is incomplete; pack again with the same settings to continue")
    return PackedSource(folder, list(meta["checksums"]), classes=meta["classes"], templates=meta["templates"])


def read_pack(folder: Path) -> dict[str, Any] | None:
    """Return the content of `pack.json`; None if the file does not exist.

    Raises:
        DataError: the file is damaged, or has a version that is not supported.
    """
    path = folder / PACK
    if not path.exists():
        return None
    try:
        meta: dict[str, Any] = read_json(path)
        version = meta["format_version"]
        if version == FORMAT_VERSION:
            _ = meta["written"], meta["classes"], meta["templates"]
    except ConfigError as error:
        raise DataError(f"{path}: is damaged ({str(error).removeprefix(f'{path}: ')})") from None
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__})") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: has format {version}; this Diptych reads {FORMAT_VERSION}. Pack again.")
    return meta


def shard_checksum(folder: Path, name: str) -> str:
    """Return a hash of the two files of a shard.

    Raises:
        OSError: a file cannot be read.
    """
    digest = blake2b(digest_size=16)
    for ending in ("npz", "pixels"):
        with (folder / f"{name}.{ending}").open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()
