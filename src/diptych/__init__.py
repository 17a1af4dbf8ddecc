"""Diptych: train, evaluate and deploy CLIP models, and search images with them.

    >>> import diptych
    >>> clip = diptych.load("runs/demo/bundle")  # doctest: +SKIP
    >>> clip.rank_images("a red circle", "pictures/")  # doctest: +SKIP

Importing this module is fast: each public name is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diptych.core.extras import missing_extra
from diptych.core.version import VERSION

if TYPE_CHECKING:
    from diptych.bundle.folder import Bundle, save_bundle
    from diptych.bundle.open_bundle import export_bundle, open_bundle
    from diptych.core.errors import DiptychError
    from diptych.data.open_source import open_source
    from diptych.inference.loaded import load
    from diptych.inference.loaded_bundle import LoadedBundle
    from diptych.inference.query import parse_query
    from diptych.losses.contrastive import clip_loss
    from diptych.models.clip import CLIP
    from diptych.models.config import CLIPConfig, ConvNetConfig, ResNetConfig, TextConfig, ViTConfig
    from diptych.presets import PRESETS
    from diptych.server.client import Client
    from diptych.training.config import TrainConfig
    from diptych.training.run import train

__version__ = VERSION

__all__ = [
    "CLIP",
    "PRESETS",
    "Bundle",
    "CLIPConfig",
    "Client",
    "ConvNetConfig",
    "DiptychError",
    "LoadedBundle",
    "ResNetConfig",
    "TextConfig",
    "TrainConfig",
    "ViTConfig",
    "clip_loss",
    "export_bundle",
    "load",
    "open_bundle",
    "open_source",
    "parse_query",
    "save_bundle",
    "train",
]

_MODULES = {
    "Bundle": "bundle.folder",
    "open_bundle": "bundle.open_bundle",
    "export_bundle": "bundle.open_bundle",
    "save_bundle": "bundle.folder",
    "DiptychError": "core.errors",
    "open_source": "data.open_source",
    "LoadedBundle": "inference.loaded_bundle",
    "load": "inference.loaded",
    "parse_query": "inference.query",
    "clip_loss": "losses.contrastive",
    "CLIP": "models.clip",
    "Client": "server.client",
    "CLIPConfig": "models.config",
    "ConvNetConfig": "models.config",
    "ResNetConfig": "models.config",
    "TextConfig": "models.config",
    "ViTConfig": "models.config",
    "PRESETS": "presets",
    "TrainConfig": "training.config",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'diptych' has no attribute '{name}'")
    try:
        return getattr(import_module(f"diptych.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        raise (missing_extra(error, f"diptych.{name}") or error) from None


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
