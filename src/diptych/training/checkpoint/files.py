"""The files of a checkpoint, written and read without pickles: PyTorch's own format except for its `.metadata`.

`torch.distributed.checkpoint` keeps its list of tensors as a pickle, and it unpickles plain values without limits. Both run
code of whoever wrote them. `metadata.json` replaces the list, and plain values are read as `torch.load(weights_only=True)`
reads them: numbers, texts, lists and tensors. The `.metadata` of older checkpoints is read by an unpickler that builds the
list's own classes and nothing else. Checksums in a checkpoint's manifest find damage; they do not protect against a
stranger, who can compute them too.
"""

import io
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.serialization import _get_layout

from diptych.core.errors import RunError
from diptych.core.files import write_text

METADATA = "metadata.json"
_OLD_METADATA = ".metadata"
_FORMAT_VERSION = 1
_DATA_FILE = re.compile(r"__\d+_\d+\.distcp")
_OLD_CLASSES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): torch_metadata._MEM_FORMAT_ENCODING,
    **{
        ("torch.distributed.checkpoint.metadata", kind.__name__): kind
        for kind in (
            BytesStorageMetadata,
            ChunkStorageMetadata,
            Metadata,
            MetadataIndex,
            StorageMeta,
            TensorProperties,
            TensorStorageMetadata,
        )
    },
    # The folder that the checkpoint was written to: a name, which is not used.
    **{(module, "PosixPath"): PurePosixPath for module in ("pathlib", PosixPath.__module__, "pathlib._local")},
    **{(module, "WindowsPath"): PureWindowsPath for module in ("pathlib", "pathlib._local")},
}
"""All that the `.metadata` of an older checkpoint may name, besides torch's dtypes."""


class JsonWriter(FileSystemWriter):
    """Writes tensors as PyTorch does, and the list of them as `metadata.json`."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the list; called once, on the first rank, when all tensors are written."""
        metadata.storage_data = {result.index: result.storage_data for part in results for result in part}
        write_text(Path(self.path) / METADATA, json.dumps(_to_plain(metadata)))


class JsonReader(FileSystemReader):
    """Reads what `JsonWriter` wrote, and what PyTorch's own writer wrote for earlier versions."""

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:
        """The list of tensors.

        Raises:
            RunError: it is damaged, or names something that no checkpoint needs.
            OSError: it cannot be read.
        """
        folder = Path(self.path)
        try:
            plain = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        except FileNotFoundError:
            plain = _to_plain(_read_old(folder / _OLD_METADATA))
        except ValueError:
            raise RunError(f"{METADATA} is damaged") from None
        try:
            return _from_plain(plain)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RunError(f"{METADATA} is damaged") from None


class SafePlanner(DefaultLoadPlanner):
    """Reads plain values without running code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put one value into the state.

        Raises:
            RunError: it is more than numbers, texts, lists and tensors.
        """
        name = read_item.dest_index.fqn
        try:
            self.state_dict[name] = torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise RunError(f"{name} holds more than numbers, texts and tensors; nothing of it was run") from None


def _to_plain(metadata: Metadata) -> dict[str, Any]:
    """Entries by name: dtype, size and chunks of a tensor, or the place of a plain value."""
    entries: dict[str, Any] = {}
    for name, kind in metadata.state_dict_metadata.items():
        if isinstance(kind, TensorStorageMetadata):
            chunks = [
                {
                    "offsets": list(chunk.offsets),
                    "sizes": list(chunk.sizes),
                    **_place_to_plain(metadata.storage_data[MetadataIndex(name, chunk.offsets)]),
                }
                for chunk in kind.chunks
            ]
            dtype = str(kind.properties.dtype).removeprefix("torch.")
            entries[name] = {"dtype": dtype, "size": list(kind.size), "chunks": chunks}
        else:
            entries[name] = _place_to_plain(metadata.storage_data[MetadataIndex(name)])
    return {"format_version": _FORMAT_VERSION, "entries": entries}


def _place_to_plain(place: _StorageInfo) -> dict[str, Any]:
    return {"file": place.relative_path, "start": place.offset, "length": place.length}


def _from_plain(plain: Mapping[str, Any]) -> Metadata:
    if plain["format_version"] != _FORMAT_VERSION:
        raise RunError(f"{METADATA} has format {plain['format_version']}; this Diptych reads {_FORMAT_VERSION}")
    kinds: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for name, entry in plain["entries"].items():
        if "chunks" not in entry:
            kinds[name] = BytesStorageMetadata()
            places[MetadataIndex(name)] = _place_from_plain(entry)
            continue
        chunks = []
        for number, chunk in enumerate(entry["chunks"]):
            offsets = torch.Size(chunk["offsets"])
            chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(chunk["sizes"])))
            places[MetadataIndex(name, offsets, number)] = _place_from_plain(chunk)
        properties = TensorProperties(dtype=_dtype(entry["dtype"]))
        kinds[name] = TensorStorageMetadata(properties=properties, size=torch.Size(entry["size"]), chunks=chunks)
    return Metadata(state_dict_metadata=kinds, storage_data=places, storage_meta=StorageMeta())


def _place_from_plain(plain: Mapping[str, Any]) -> _StorageInfo:
    """Only files of the checkpoint's own folder are read."""
    file = str(plain["file"])
    if not _DATA_FILE.fullmatch(file):
        raise RunError(f"{METADATA} names the file {file!r}, which is not one of a checkpoint")
    return _StorageInfo(relative_path=file, offset=int(plain["start"]), length=int(plain["length"]))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(name)
    return dtype


class _OldUnpickler(pickle.Unpickler):
    """Builds the classes of a list of tensors, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name."""
        if (module, name) in _OLD_CLASSES:
            return _OLD_CLASSES[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise RunError(f"{_OLD_METADATA} names {module}.{name}, which no checkpoint needs; nothing of it was run")


def _read_old(path: Path) -> Metadata:
    """The list as PyTorch's own writer wrote it."""
    with path.open("rb") as file:
        try:
            metadata = _OldUnpickler(file).load()
        except RunError:
            raise
        except Exception as error:  # A damaged pickle raises nearly anything.
            raise RunError(f"{path.name} is damaged ({type(error).__name__})") from None
    if not isinstance(metadata, Metadata):
        raise RunError(f"{path.name} is damaged")
    return metadata
