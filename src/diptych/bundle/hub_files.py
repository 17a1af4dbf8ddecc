"""Select the files of a hub repository that Diptych needs, and check whether a downloaded folder is complete."""

import re
from collections.abc import Sequence
from pathlib import Path

from diptych.bundle.onnx_layout import ONNX_CONFIG
from diptych.bundle.weights_index import indexed_files
from diptych.core.errors import ConfigError
from diptych.core.settings import read_json

BUNDLE = "bundle"
"""Folder of the bundle in a repository that `diptych push` wrote."""
BUNDLE_CONFIG = f"{BUNDLE}/config.json"
README = "README.md"
"""The model card, whose metadata contains the license."""
_WEIGHTS = (
    r"open_clip_(pytorch_)?model\.safetensors",
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"open_clip_pytorch_model\.bin",
    r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
    r"adapter_model\.(safetensors|bin)",
)
"""Patterns of weight files in order of preference; only the files of the first pattern that matches are fetched."""
_LAST_RESORT = r"[^/]+\.npz"
"""big_vision's weights, which are fetched only if a repository has no other weights."""
_CONFIGS = r"[^/]+\.(json|txt)|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model"
"""Configs and tokenizer files."""
_MODULE = re.compile(r"\d+_\w+")
"""Folder of a module in a sentence-transformers repository, such as `0_CLIPModel`."""
_WITHOUT_WEIGHTS = ("_Pooling", "_Normalize", "_Dropout")
"""Suffixes of the names of modules without weights."""


def split_files(files: Sequence[str], *, has_torch: bool) -> tuple[list[str], list[str]]:
    """Return the files to download, as names or patterns: small files and weights.

    A repository that `diptych push` wrote has a bundle and usually an ONNX export. Only one of them is downloaded: the bundle
    if PyTorch is installed. Both lists are empty if the repository has only a bundle and PyTorch is not installed.

    Args:
        files: paths of all files in the repository.
        has_torch: whether PyTorch is installed.
    """
    cards = [README] if README in files else []
    if BUNDLE_CONFIG in files and has_torch:
        return [*cards, f"{BUNDLE}/*.json", f"{BUNDLE}/*.md"], [f"{BUNDLE}/*"]
    if ONNX_CONFIG in files:
        at_root = [name for name in files if re.fullmatch(r"[^/]+\.json", name)]
        return [*cards, *at_root, "diptych/*"], ["onnx/*"]
    if BUNDLE_CONFIG in files:
        return [], []
    folders = ["", *sorted({name.partition("/")[0] for name in files if "/" in name and _is_module(name)})]
    small, weights = cards, list[str]()
    for folder in folders:
        start = f"{folder}/" if folder else ""
        inside = [name.removeprefix(start) for name in files if name.startswith(start)]
        selected = _weights(inside)
        indices = [name for name in selected if name.endswith(".index.json")]
        configs = [name for name in inside if re.fullmatch(_CONFIGS, name) and not name.endswith(".index.json")]
        small += [start + name for name in configs + indices]
        weights += [start + name for name in selected if name not in indices]
    return small, weights or [name for name in files if re.fullmatch(_LAST_RESORT, name)]


def model_path(folder: Path, *, has_torch: bool) -> Path | None:
    """Return the path of the model in a downloaded snapshot; None if files are missing, as after an interrupted download.

    The path is the snapshot itself, the bundle folder in it, or a single weights file.

    Args:
        folder: the snapshot of a repository in the cache of the hub.
        has_torch: whether PyTorch is installed; if so, a bundle has precedence over an ONNX export.
    """
    if (folder / BUNDLE_CONFIG).is_file() and has_torch:
        return folder / BUNDLE if _has_all(folder / BUNDLE, folder / BUNDLE_CONFIG) else None
    if (folder / ONNX_CONFIG).is_file():
        return folder if _has_all(folder, folder / ONNX_CONFIG) else None
    if (folder / BUNDLE_CONFIG).is_file():
        return None
    modules = sorted(path for path in folder.glob("*_*") if path.is_dir() and _MODULE.fullmatch(path.name))
    needed = [path for path in modules if not path.name.endswith(_WITHOUT_WEIGHTS)]
    complete = [_is_complete(path) for path in (needed or [folder])]
    if all(complete) or (needed and _is_complete(folder) and all(complete[1:])):
        return folder
    alone = sorted(folder.glob("*.npz"))
    return alone[0] if len(alone) == 1 and not any(complete) else None


def _is_module(name: str) -> bool:
    return _MODULE.fullmatch(name.partition("/")[0]) is not None


def _weights(names: Sequence[str]) -> list[str]:
    """Return the preferred weight files of one folder, with their index."""
    for kind in _WEIGHTS:
        found = [name for name in names if re.fullmatch(kind, name)]
        if found:
            return found
    return []


def _is_complete(folder: Path) -> bool:
    """Whether a folder has all of its weight files."""
    names = {path.name for path in folder.iterdir()}
    indices = [name for name in names if name.endswith(".index.json")]
    if indices:
        return names >= indexed_files(folder / indices[0])
    return bool(_weights(sorted(names)))


def _has_all(folder: Path, config: Path) -> bool:
    """Whether a folder has all files whose checksums are in a config of Diptych."""
    try:
        content = read_json(config)
    except ConfigError:
        return False
    files = content.get("files") if isinstance(content, dict) else None
    return isinstance(files, dict) and all((folder / name).is_file() for name in files)
