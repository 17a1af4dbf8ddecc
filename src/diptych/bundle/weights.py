"""Weights out of other libraries' files. Nothing is unpickled but tensors."""

import json
import re
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diptych.core.errors import BundleError

_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Reads safetensors (also as an index over several files), what `torch.save` wrote (open_clip's training checkpoints, too)
    and TorchScript archives, as OpenAI published its weights.

    Raises:
        BundleError: the file is damaged, holds no tensors, or asks for more than tensors to be unpickled.
    """
    try:
        if path.name.endswith(".index.json"):
            return _read_index(path)
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except UnpicklingError:
        raise BundleError(
            f"{path}: cannot be read as weights: damaged, or more than tensors (save the state_dict alone)"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise BundleError(f"{path}: cannot be read as weights ({_first_line(error)})") from None
    return _without_wrapping(content, path)


def _read_index(path: Path) -> dict[str, Tensor]:
    try:
        files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{path}: is not an index of weights") from None
    weights: dict[str, Tensor] = {}
    for name in files:
        weights |= read_weights(path.with_name(Path(name).name))
    return weights


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; OpenAI's files are what they are.
        try:
            script = torch.jit.load(str(path), map_location="cpu")
        except RuntimeError:  # Not an archive of TorchScript.
            return torch.load(path, map_location="cpu", weights_only=True)
    return dict(script.state_dict())


def _without_wrapping(content: Any, path: Path) -> dict[str, Tensor]:
    """Out of a training checkpoint, and without the prefixes of models that were compiled or trained in parallel."""
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise BundleError(f"{path}: holds no weights by name")
    tensors = {_PREFIXES.sub("", name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise BundleError(f"{path}: holds no weights by name")
    return tensors


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
