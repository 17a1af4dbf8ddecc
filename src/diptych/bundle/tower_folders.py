"""Find the folder of a timm or transformers tower: a local folder, or a hub repository, which is downloaded once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.bundle.hub import NEEDS_EXTRA, PREFIX
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json

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
    identifier = name.removeprefix(PREFIX)
    if identifier.count("/") > 1 or identifier.startswith(("/", ".", "~")):
        raise BundleError(f"{name}: there is no such folder")
    folder = _downloaded(identifier, (*_FACTS, *(_WEIGHTS if with_weights else ())))
    if with_weights and weights_file(folder) is None:
        folder = _downloaded(identifier, (*_FACTS, *_OLD_WEIGHTS))
    return folder


def weights_file(folder: Path) -> Path | None:
    """Return the weights file in a folder, or its index of several files; None if there is none."""
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a folder; empty if there is no such file.

    Raises:
        BundleError: the file is damaged or does not contain an object.
    """
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if not isinstance(content, dict):
        raise BundleError(f"{path}: is not a JSON object")
    return content


def _downloaded(identifier: str, patterns: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  (an extra)
        from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise ConfigError(NEEDS_EXTRA) from None
    try:
        return Path(snapshot_download(identifier, allow_patterns=list(patterns)))
    except HFValidationError:
        raise BundleError(f"{identifier}: is neither a folder nor a hub id") from None
    except GatedRepoError:
        raise BundleError(
            f"{identifier}: is gated; accept its terms on its page, then log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise BundleError(f"{identifier}: is not a folder, and the hub has no such model") from None
    except Exception as error:  # Raised by several libraries: HTTP client, huggingface_hub, operating system.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BundleError(
            f"{identifier}: is not a folder, and cannot be downloaded from the hub ({reason:.160})"
        ) from None
