"""Folders from the Hugging Face hub, through `huggingface_hub` and its cache."""

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
"""Names of weights, the best first; only the first that a model has are fetched."""


def download(name: str) -> Path:
    """The local folder of a hub id such as `hf:openai/clip-vit-base-patch32`.

    What is in the cache is not fetched again, and is enough where the hub cannot be reached. `HF_ENDPOINT`, `HF_HOME`,
    `HF_HUB_OFFLINE` and `HF_TOKEN` mean what they mean to `huggingface_hub`.

    Raises:
        ConfigError: the extra is not installed.
        BundleError: the hub has no such model, or cannot be reached and the cache does not hold it.
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
        raise BundleError(f"{name}: is no hub id; one looks like hf:openai/clip-vit-base-patch32") from None
    except GatedRepoError:
        raise BundleError(f"{name}: is gated; accept its terms on its page, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise BundleError(f"{name}: the hub has no such model; for a private one log in with `hf auth login`") from None
    except Exception as error:  # Of several libraries: the network's, the hub's, the operating system's.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    for config in ("config.json", "open_clip_config.json"):
        cached = try_to_load_from_cache(identifier, config)
        if isinstance(cached, str) and _is_whole(Path(cached).parent):
            return Path(cached).parent
    raise BundleError(f"{name}: is not in the cache, and the hub cannot be reached ({reason})")


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache has its weights, all parts of them: a download may have been broken off."""
    names = {path.name for path in folder.iterdir()}
    indices = [name for name in names if name.endswith(".index.json")]
    if indices:
        return names >= indexed_files(folder / indices[0])
    return any(_any(kind, sorted(names)) for kind in _WEIGHTS)


def _wanted(files: list[str]) -> list[str]:
    """The configs, the tokenizer's files, and the weights once, of whichever naming."""
    chosen = next((kind for kind in _WEIGHTS if _any(kind, files)), "none")
    weights = [name for name in files if re.fullmatch(chosen, name)]
    return weights + [
        name for name in files if re.fullmatch(r"[^/]+\.(json|txt)", name) and not name.endswith(".index.json")
    ]


def _any(kind: str, names: list[str]) -> bool:
    return any(re.fullmatch(kind, name) for name in names)
