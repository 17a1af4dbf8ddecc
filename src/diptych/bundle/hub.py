"""Download model folders from the Hugging Face hub, with `huggingface_hub` and its cache."""

import re
from pathlib import Path

from diptych.bundle.weights import indexed_files
from diptych.core.errors import BundleError, ConfigError

PREFIX = "hf:"
_WEIGHTS = (
    r"open_clip_(pytorch_)?model\.safetensors",
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"open_clip_pytorch_model\.bin",
    r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
)
"""Patterns of weight files in order of preference; only the files of the first pattern that matches are fetched."""


def download(name: str) -> Path:
    """Return the local folder of a hub id such as `hf:openai/clip-vit-base-patch32`, and download it if necessary.

    Files in the cache are not fetched again; if the hub cannot be reached, a complete model in the cache is used.
    `huggingface_hub` reads the variables `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN`.

    Raises:
        ConfigError: the extra `hub` is not installed.
        BundleError: the id is not valid, the hub has no such model, access is denied, or the hub cannot be reached and the
            model is not in the cache.
    """
    try:
        from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache  # noqa: PLC0415  (an extra)
        from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise ConfigError("the hub needs an extra: pip install 'diptych[hub]'") from None
    identifier = name.removeprefix(PREFIX)
    try:
        files = [file.rfilename for file in model_info(identifier).siblings or []]
        return Path(snapshot_download(identifier, allow_patterns=_wanted(files)))
    except HFValidationError:
        raise BundleError(f"{name}: is not a hub id; an example is hf:openai/clip-vit-base-patch32") from None
    except GatedRepoError:
        raise BundleError(f"{name}: is gated; accept its terms on its page, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise BundleError(f"{name}: the hub has no such model; for a private one log in with `hf auth login`") from None
    except Exception as error:  # Raised by several libraries: HTTP client, huggingface_hub, operating system.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    for config in ("config.json", "open_clip_config.json"):
        cached = try_to_load_from_cache(identifier, config)
        if isinstance(cached, str) and _is_complete(Path(cached).parent):
            return Path(cached).parent
    raise BundleError(f"{name}: is not in the cache, and the hub cannot be reached ({reason})")


def _is_complete(folder: Path) -> bool:
    """Whether a folder of the cache has all of its weight files: a download may have been interrupted."""
    names = {path.name for path in folder.iterdir()}
    indices = [name for name in names if name.endswith(".index.json")]
    if indices:
        return names >= indexed_files(folder / indices[0])
    return any(_any(kind, sorted(names)) for kind in _WEIGHTS)


def _wanted(files: list[str]) -> list[str]:
    """Return the names of the configs, of the tokenizer files, and of the weight files in the preferred format."""
    selected = next((kind for kind in _WEIGHTS if _any(kind, files)), "none")
    weights = [name for name in files if re.fullmatch(selected, name)]
    return weights + [
        name for name in files if re.fullmatch(r"[^/]+\.(json|txt)", name) and not name.endswith(".index.json")
    ]


def _any(kind: str, names: list[str]) -> bool:
    return any(re.fullmatch(kind, name) for name in names)
