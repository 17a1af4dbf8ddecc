"""Refuse models that Diptych cannot run: models that need code from their folder, and NaFlex models. Needs no PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json

_OPEN_CLIP = "open_clip_config.json"
_MODULES = "modules.json"


def refuse_unsupported(folder: Path, name: str) -> None:
    """Raise an error if a Hugging Face, open_clip or sentence-transformers folder needs its own code or is a NaFlex model.

    Only configs are read, so weights may be missing. Missing and damaged files are ignored; reading the model reports them.

    Args:
        folder: the folder.
        name: the name of the model, for the message.

    Raises:
        BundleError: the config names classes in the folder's own code (`auto_map`), or the image tower is NaFlex.
    """
    config, processor = _object(folder / "config.json"), _object(folder / "preprocessor_config.json")
    if _has_code(folder, config):
        raise BundleError(f"{name}: needs code from its repository (trust_remote_code), which Diptych never runs")
    open_clip = _object(folder / _OPEN_CLIP).get("model_cfg")
    vision = open_clip.get("vision_cfg") if isinstance(open_clip, Mapping) else None
    timm_name = vision.get("timm_model_name") if isinstance(vision, Mapping) else None
    if str(timm_name).startswith("naflex") or _is_naflex_config(config) or _is_naflex_processor(processor):
        raise BundleError(naflex_message(name))


def refuse_naflex_name(name: str) -> None:
    """Raise an error if a model's name contains `naflex`.

    Raises:
        BundleError: it does; the message names an alternative.
    """
    if "naflex" in name.lower():
        raise BundleError(naflex_message(name))


def naflex_message(name: str) -> str:
    """Return the message that refuses a NaFlex model and names an alternative.

    Args:
        name: the name of the model.
    """
    alternative = "siglip2-so400m-16-256" if "so400m" in name.lower() else "siglip2-b-16-256"
    return (
        f"{name}: is a NaFlex model, whose images have no fixed size; use one with a fixed size, such as {alternative}"
    )


def _is_naflex_config(config: Mapping[str, Any]) -> bool:
    vision = config.get("vision_config")
    known = vision if isinstance(vision, Mapping) else {}
    return config.get("model_type") == "siglip2" and ("num_patches" in known or "image_size" not in known)


def _is_naflex_processor(processor: Mapping[str, Any]) -> bool:
    return "max_num_patches" in processor or str(processor.get("image_processor_type")).startswith("Siglip2Image")


def _has_code(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a model needs its own code. `auto_map` is ignored if the folder also has an open_clip config."""
    if config.get("auto_map") and not (folder / _OPEN_CLIP).is_file():
        return True
    modules = _content(folder / _MODULES)
    types = (
        [module.get("type") for module in modules if isinstance(module, Mapping)] if isinstance(modules, list) else []
    )
    return any(not str(kind).startswith("sentence_transformers.") for kind in types)


def _object(path: Path) -> Mapping[str, Any]:
    content = _content(path)
    return content if isinstance(content, Mapping) else {}


def _content(path: Path) -> Any:
    try:
        return read_json(path)
    except ConfigError:
        return None
