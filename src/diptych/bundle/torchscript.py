"""Read the weights in a TorchScript archive without running its code: `torch.jit.load` would run its `__setstate__` methods.

An archive is a zip file. `data.pkl` is a pickle of nested modules, whose tensors refer to the files `data/0`, `data/1`, ...
Only the few names that such a pickle needs are resolved; any other name is rejected. The code in the archive is not read.
"""

import pickle
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAX_DEPTH = 64


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with `constants.pkl`, which `torch.save` does not write."""
    try:
        with ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (BadZipFile, ValueError):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an archive's modules by dotted name, on the CPU. Does not run code of the archive.

    Raises:
        UnpicklingError: the archive contains objects other than modules and tensors.
        Exception: the archive is damaged; zipfile and pickle have no common exception class.
    """
    with ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        root = _Reader(archive, name.removesuffix("data.pkl")).load()
    tensors: dict[str, Tensor] = {}
    _collect(root, "", tensors, 0)
    return tensors


class _Module:
    """Replaces the instances of all classes of the archive."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Storage:
    """The content of a file of the archive as a flat tensor."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat


class _Reader(pickle._Unpickler):
    """An unpickler in pure Python. With the C implementation, a few bytes could allocate gigabytes of memory."""

    def __init__(self, archive: ZipFile, prefix: str) -> None:
        super().__init__(BytesIO(archive.read(f"{prefix}data.pkl")))
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module.split(".", maxsplit=1)[0] == "__torch__":
            return _Module
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, num = pid
        if not isinstance(key, str) or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(repr(pid))
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._prefix}data/{key}"))
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if flat.numel() != num:
                raise pickle.UnpicklingError(f"data/{key} has {flat.numel()} numbers, not {num}")
            self._storages[key] = _Storage(flat)
        return self._storages[key]


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError(repr(type(storage)))
    return storage.flat.as_strided(size, stride, offset)


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise pickle.UnpicklingError("its modules are nested too deep")
    if isinstance(module, _Module) and isinstance(module.state, dict):
        for name, value in module.state.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            else:
                _collect(value, f"{prefix}{name}.", tensors, depth + 1)
