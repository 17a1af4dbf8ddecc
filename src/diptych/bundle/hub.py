"""Download model folders from the Hugging Face hub, with `huggingface_hub` and its cache. Needs no PyTorch.

A repository that `diptych push` wrote contains the bundle in the folder `bundle`, and usually its ONNX export at the root. If
PyTorch is installed, only the bundle is downloaded, otherwise only the ONNX export.
"""

import re
from pathlib import Path

from diptych.bundle.onnx_layout import ONNX_CONFIG
from diptych.bundle.weights_index import indexed_files
from diptych.core.errors import BundleError, ConfigError
from diptych.core.extras import has_torch
from diptych.core.settings import read_json

PREFIX = "hf:"
BUNDLE = "bundle"
"""Folder of the bundle in a repository that `diptych push` wrote."""
BUNDLE_CONFIG = f"{BUNDLE}/config.json"
NEEDS_EXTRA = "the hub needs an extra: pip install 'diptych[hub]'"
_WEIGHTS = (
    r"open_clip_(pytorch_)?model\.safetensors",
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"open_clip_pytorch_model\.bin",
    r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
)
"""Patterns of weight files in order of preference; only the files of the first pattern that matches are fetched."""


def download(name: str) -> Path:
    """Return the local folder of a hub id such as `hf:openai/clip-vit-base-patch32`, and download it if necessary.

    Files in the cache are not downloaded again. If the hub cannot be reached, a complete model in the cache is used. For a
    repository that `diptych push` wrote, the result is the folder of the bundle or, without PyTorch, the ONNX folder.
    `huggingface_hub` reads the environment variables `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN`.

    Raises:
        ConfigError: the extra `hub` is not installed, or the repository has only a bundle and PyTorch is not installed.
        BundleError: the id is not valid, the hub has no such model, access is denied, or the hub cannot be reached and the
            model is not in the cache.
    """
    try:
        from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache  # noqa: PLC0415  (an extra)
        from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise ConfigError(NEEDS_EXTRA) from None
    identifier = name.removeprefix(PREFIX)
    try:
        files = [file.rfilename for file in model_info(identifier).siblings or []]
        wanted = _wanted(files)
        if not has_torch() and ONNX_CONFIG not in files:
            raise ConfigError(f"{name}: has no ONNX files, so it needs PyTorch: pip install 'diptych[train]'")
        folder = Path(snapshot_download(identifier, allow_patterns=wanted))
        return folder / BUNDLE if wanted[:1] == [f"{BUNDLE}/*"] else folder
    except ConfigError:
        raise
    except HFValidationError:
        raise BundleError(f"{name}: is not a hub id; an example is hf:openai/clip-vit-base-patch32") from None
    except GatedRepoError:
        raise BundleError(f"{name}: is gated; accept its terms on its page, then log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise BundleError(f"{name}: the hub has no such model; for a private one log in with `hf auth login`") from None
    except Exception as error:  # Raised by several libraries: HTTP client, huggingface_hub, operating system.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    pushed = BUNDLE_CONFIG if has_torch() else ONNX_CONFIG
    for config in (pushed, "config.json", "open_clip_config.json"):
        cached = try_to_load_from_cache(identifier, config)
        complete = _complete_folder(Path(cached), config) if isinstance(cached, str) else None
        if complete is not None:
            return complete
    raise BundleError(f"{name}: is not in the cache, and the hub cannot be reached ({reason})")


def _complete_folder(cached: Path, config: str) -> Path | None:
    """The folder of a model in the cache; None if files are missing, for example after an interrupted download."""
    folder = cached.parents[1] if config == ONNX_CONFIG else cached.parent
    is_pushed = config in {BUNDLE_CONFIG, ONNX_CONFIG}
    return folder if (_has_all(folder, cached) if is_pushed else _is_complete(folder)) else None


def _has_all(folder: Path, config: Path) -> bool:
    """Whether a folder has all files whose checksums are in a config of Diptych."""
    try:
        content = read_json(config)
    except ConfigError:
        return False
    files = content.get("files") if isinstance(content, dict) else None
    return isinstance(files, dict) and all((folder / name).is_file() for name in files)


def _is_complete(folder: Path) -> bool:
    """Whether a folder of the cache has all of its weight files."""
    names = {path.name for path in folder.iterdir()}
    indices = [name for name in names if name.endswith(".index.json")]
    if indices:
        return names >= indexed_files(folder / indices[0])
    return any(_any(kind, sorted(names)) for kind in _WEIGHTS)


def _wanted(files: list[str]) -> list[str]:
    """Return the names of the configs, of the tokenizer files, and of the weight files in the preferred format.

    For a repository that `diptych push` wrote, return the patterns of the bundle or of the ONNX folder. The list is empty if
    PyTorch is not installed and the repository has no ONNX folder.
    """
    if BUNDLE_CONFIG in files and has_torch():
        return [f"{BUNDLE}/*"]
    if ONNX_CONFIG in files:
        at_root = [name for name in files if re.fullmatch(r"[^/]+\.json", name)]
        return [*at_root, "onnx/*", "diptych/*"]
    if BUNDLE_CONFIG in files:
        return []
    selected = next((kind for kind in _WEIGHTS if _any(kind, files)), "none")
    weights = [name for name in files if re.fullmatch(selected, name)]
    return weights + [
        name for name in files if re.fullmatch(r"[^/]+\.(json|txt)", name) and not name.endswith(".index.json")
    ]


def _any(kind: str, names: list[str]) -> bool:
    return any(re.fullmatch(kind, name) for name in names)
