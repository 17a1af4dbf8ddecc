"""Read weights from files of other libraries. Only tensors are unpickled, and no code in a file is run."""

import re
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

from diptych.bundle.torchscript import is_torchscript, read_torchscript
from diptych.bundle.weights_index import indexed_files
from diptych.core.errors import BundleError

_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
_ZIP_SLACK = 64 * 2**20
"""Number of bytes by which the compressed parts of an archive, such as its code, may grow."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Suffixes of files of weights."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights by name, on the CPU.

    Supports safetensors (also as an index of several files), files of `torch.save` (also open_clip's training checkpoints) and
    TorchScript archives, the format of OpenAI's published weights.

    Raises:
        BundleError: the file is damaged, contains no tensors, or contains pickled objects other than tensors.
    """
    if path.name.endswith(".index.json"):
        return _read_index(path)
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
    tensors = _without_wrapping(content, path)
    _refuse_views(tensors, path)
    return tensors


def _read_index(path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name in sorted(indexed_files(path)):
        if name.endswith(".index.json"):
            raise BundleError(f"{path}: is not an index of weights: it lists another index")
        weights |= read_weights(path.with_name(name))
    return weights


def _read_torch(path: Path) -> Any:
    _refuse_bomb(path)
    if is_torchscript(path):
        return read_torchscript(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Warnings about old formats, which the user cannot change.
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


def _without_wrapping(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict or a training checkpoint, without the prefixes of compiled or parallel models."""
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    is_named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    named = content if is_named else {}
    tensors = {_PREFIXES.sub("", name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise BundleError(f"{path}: holds no weights by name")
    return tensors


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
