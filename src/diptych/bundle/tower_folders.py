"""Find the folder of a timm or transformers tower: a local folder, or a hub repository, which is downloaded once."""

from pathlib import Path

from diptych.bundle.hub import PREFIX, download_files
from diptych.bundle.weights import SUFFIXES
from diptych.core.errors import BundleError

_FACTS = ("*.json", "*/config.json")
"""Configs and tokenizer files, including those in the module folders of sentence-transformers."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weights files in order of preference."""


def tower_folder(name: str, *, with_weights: bool) -> Path:
    """Return the folder of a tower. A hub repository is downloaded into the usual cache.

    Args:
        name: a local folder, or a hub id, with or without `hf:`.
        with_weights: whether to download the weights, too.

    Raises:
        ConfigError: the extra `hub` is not installed.
        BundleError: there is no such folder or repository, or the hub cannot be reached.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if local.suffix in SUFFIXES:
        raise BundleError(f"{name}: there is no such file")
    identifier = name.removeprefix(PREFIX)
    if identifier.count("/") > 1 or identifier.startswith(("/", ".", "~")):
        raise BundleError(f"{name}: there is no such folder")
    address = f"{PREFIX}{identifier}"
    folder = download_files(address, (*_FACTS, *(_WEIGHTS if with_weights else ())))
    if with_weights and weights_file(folder) is None:
        folder = download_files(address, (*_FACTS, *_OLD_WEIGHTS))
    return folder


def weights_file(folder: Path) -> Path | None:
    """Return the weights file in a folder, or its index of several files; None if there is none."""
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)
