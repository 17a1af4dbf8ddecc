"""Read weights from files of other libraries. Only tensors are unpickled, and no code in a file is run.

Other objects of known harmless classes are replaced with empty objects, without importing the classes.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from struct import error as StructError  # noqa: N812
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile
from zlib import error as ZlibError  # noqa: N812

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diptych.bundle.state_dicts import StateDict, find_state_dict
from diptych.bundle.torchscript import is_torchscript, read_torchscript
from diptych.bundle.weights_facts import WeightsChoice
from diptych.bundle.weights_index import indexed_files
from diptych.core.errors import BundleError

_ZIP_SLACK = 64 * 2**20
"""Number of bytes by which the compressed parts of an archive, such as its code, may grow."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Suffixes of files of weights."""
INDEX = ".index.json"
"""Suffix of the name of an index of several weights files."""
_INERT = (
    "argparse.Namespace",
    "collections.defaultdict",
    *(f"pathlib.{name}Path" for name in ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")),
    *(f"pathlib._local.{name}Path" for name in ("Posix", "Windows")),
    *(f"numpy.{name}.multiarray.scalar" for name in ("core", "_core")),
    *(f"numpy.{name}.multiarray._reconstruct" for name in ("core", "_core")),
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    *(f"{name}.utilities.parsing.AttributeDict" for name in ("pytorch_lightning", "lightning.pytorch")),
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)
"""Classes and functions of harmless objects next to the weights, such as the options of the training program. They are not
imported; an empty object replaces each object."""


class _Inert(dict[Any, Any]):
    """Replaces an object that is not a tensor. It ignores all arguments and state."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, on the CPU; see `read_state_dict`.

    Raises:
        BundleError: the file is damaged, contains no tensors, or contains pickled objects that are not harmless.
    """
    return read_state_dict(path).tensors


def read_state_dict(path: Path, choice: WeightsChoice | None = None) -> StateDict:
    """Return the weights of a file, on the CPU.

    Supports safetensors (including an index of several files), files of `torch.save` (including training checkpoints of
    open_clip, timm and Lightning) and TorchScript archives, the format of OpenAI's published weights.

    Args:
        path: the file.
        choice: which set of weights to return; see `find_state_dict`.

    Raises:
        BundleError: the file is damaged, contains no tensors, or contains pickled objects that are not harmless.
        ConfigError: there is no such choice.
    """
    if path.name.endswith(INDEX):
        return find_state_dict(_read_index(path), path, choice)
    if path.exists() and not path.is_file():
        raise BundleError(f"{path}: is not a regular file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except UnpicklingError:
        raise BundleError(
            f"{path}: cannot be read as weights: damaged, or more than tensors (save the state_dict alone)"
        ) from None
    except (
        SafetensorError, BadZipFile, ZlibError, StructError, EOFError, OSError, RuntimeError, ValueError,
        LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, StopIteration,
    ) as error:  # fmt: skip
        raise BundleError(f"{path}: cannot be read as weights ({_first_line(error)})") from None
    found = find_state_dict(content, path, choice)
    _refuse_views(found.tensors, path)
    return found


def _read_index(path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name in sorted(indexed_files(path)):
        if name.endswith(INDEX):
            raise BundleError(f"{path}: is not an index of weights: it lists another index")
        weights |= read_weights(path.with_name(name))
    return weights


def _read_torch(path: Path) -> Any:
    _refuse_bomb(path)
    if is_torchscript(path):
        return read_torchscript(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Warnings about old formats, which the user cannot change.
        with torch.serialization.safe_globals([(_Inert, name) for name in _INERT]):
            return torch.load(path, map_location="cpu", weights_only=True)


def _refuse_bomb(path: Path) -> None:
    """Raise an error for a zip file that unpacks to much more than its size; `torch.save` does not compress."""
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > 2 * path.stat().st_size + _ZIP_SLACK:
        raise ValueError(f"it unpacks to {unpacked:,} bytes")


def _refuse_views(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise an error for tensors that are not dense, or that would become larger than the file when copied."""
    for name, tensor in tensors.items():
        is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not is_dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise BundleError(f"{path}: {name} is not a dense tensor with all of its numbers in the file")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
