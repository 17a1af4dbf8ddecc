"""Reads and writes the files of a checkpoint safely: the format of `torch.distributed.checkpoint`, but without pickles.

`torch.distributed.checkpoint` stores its metadata (the list of tensors) as a pickle and unpickles plain values without
restrictions, so a malicious file could execute code. Here, `metadata.json` replaces the pickled metadata, and plain values
are read by `torch.load(weights_only=True)`: numbers, strings, lists and tensors. The `.metadata` of older checkpoints is read
by an unpickler that allows only the classes of the metadata. The checksums in the manifest of a checkpoint detect damage;
they do not protect against tampering.
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
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.serialization import _get_layout

from diptych.core.errors import RunError
from diptych.core.files import write_text

METADATA = "metadata.json"
_OLD_METADATA = ".metadata"
_FORMAT_VERSION = 1
_DATA_FILE = re.compile(r"__\d+_\d+\.distcp")
_METADATA_CLASSES = (
    *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
    *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
)
_OLD_CLASSES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    **{("torch.distributed.checkpoint.metadata", name): getattr(torch_metadata, name) for name in _METADATA_CLASSES},
    # The folder that the checkpoint was written to, which is not used.
    **{(module, "PosixPath"): PurePosixPath for module in ("pathlib", PosixPath.__module__, "pathlib._local")},
    **{(module, "WindowsPath"): PureWindowsPath for module in ("pathlib", "pathlib._local")},
}
"""All names that the `.metadata` of an older checkpoint may contain, besides the dtypes of torch."""


class JsonWriter(FileSystemWriter):
    """Writes tensors in PyTorch's format, and the metadata as `metadata.json`."""

    def finish(self, metadata: torch_metadata.Metadata, results: list[list[WriteResult]]) -> None:
        """Write the metadata. PyTorch calls it once, on rank 0, after all tensors are written."""
        metadata.storage_data = {result.index: result.storage_data for part in results for result in part}
        write_text(Path(self.path) / METADATA, json.dumps(_to_plain(metadata)))


class JsonReader(FileSystemReader):
    """Reads checkpoints that `JsonWriter` wrote, and those of earlier versions, which used PyTorch's own writer."""

    def read_metadata(self, *_args: Any, **_options: Any) -> torch_metadata.Metadata:
        """Read the metadata.

        Raises:
            RunError: the file is damaged, or contains a class that no checkpoint needs.
            OSError: the file cannot be read.
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
    """Loads plain values without executing code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Load one plain value into the state.

        Raises:
            RunError: the value contains anything but numbers, strings, lists and tensors.
        """
        name = read_item.dest_index.fqn
        try:
            self.state_dict[name] = torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise RunError(f"{name} holds more than numbers, texts and tensors; nothing of it was run") from None


def _to_plain(metadata: torch_metadata.Metadata) -> dict[str, Any]:
    """Metadata as JSON data: by name, dtype, size and chunks of a tensor, or the storage location of a plain value."""
    entries: dict[str, Any] = {}
    for name, kind in metadata.state_dict_metadata.items():
        if isinstance(kind, torch_metadata.TensorStorageMetadata):
            chunks = [
                {
                    "offsets": list(chunk.offsets),
                    "sizes": list(chunk.sizes),
                    **_location_to_plain(metadata.storage_data[torch_metadata.MetadataIndex(name, chunk.offsets)]),
                }
                for chunk in kind.chunks
            ]
            dtype = str(kind.properties.dtype).removeprefix("torch.")
            entries[name] = {"dtype": dtype, "size": list(kind.size), "chunks": chunks}
        else:
            entries[name] = _location_to_plain(metadata.storage_data[torch_metadata.MetadataIndex(name)])
    return {"format_version": _FORMAT_VERSION, "entries": entries}


def _location_to_plain(location: _StorageInfo) -> dict[str, Any]:
    return {"file": location.relative_path, "start": location.offset, "length": location.length}


def _from_plain(plain: Mapping[str, Any]) -> torch_metadata.Metadata:
    if plain["format_version"] != _FORMAT_VERSION:
        raise RunError(f"{METADATA} has format {plain['format_version']}; this Diptych reads {_FORMAT_VERSION}")
    kinds: dict[str, torch_metadata.TensorStorageMetadata | torch_metadata.BytesStorageMetadata] = {}
    locations: dict[torch_metadata.MetadataIndex, _StorageInfo] = {}
    for name, entry in plain["entries"].items():
        if "chunks" not in entry:
            kinds[name] = torch_metadata.BytesStorageMetadata()
            locations[torch_metadata.MetadataIndex(name)] = _location_from_plain(entry)
            continue
        chunks = []
        for number, chunk in enumerate(entry["chunks"]):
            offsets = torch.Size(chunk["offsets"])
            chunks.append(torch_metadata.ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(chunk["sizes"])))
            locations[torch_metadata.MetadataIndex(name, offsets, number)] = _location_from_plain(chunk)
        properties = torch_metadata.TensorProperties(dtype=_dtype(entry["dtype"]))
        size = torch.Size(entry["size"])
        kinds[name] = torch_metadata.TensorStorageMetadata(properties=properties, size=size, chunks=chunks)
    return torch_metadata.Metadata(
        state_dict_metadata=kinds, storage_data=locations, storage_meta=torch_metadata.StorageMeta()
    )


def _location_from_plain(plain: Mapping[str, Any]) -> _StorageInfo:
    """A storage location from JSON data. Only files in the checkpoint's own folder are accepted."""
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
    """Unpickler that allows only the classes of the metadata."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of this name.

        Raises:
            RunError: the class is not part of the metadata.
        """
        if (module, name) in _OLD_CLASSES:
            return _OLD_CLASSES[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise RunError(f"{_OLD_METADATA} names {module}.{name}, which no checkpoint needs; nothing of it was run")


def _read_old(path: Path) -> torch_metadata.Metadata:
    """Read the metadata of an older checkpoint, which PyTorch's own writer wrote."""
    with path.open("rb") as file:
        try:
            metadata = _OldUnpickler(file).load()
        except RunError:
            raise
        except Exception as error:  # A damaged pickle can raise almost any exception.
            raise RunError(f"{path.name} is damaged ({type(error).__name__})") from None
    if not isinstance(metadata, torch_metadata.Metadata):
        raise RunError(f"{path.name} is damaged")
    return metadata
