"""The origin of a bundle, which is stored in the bundle."""

import platform

import torch

from diptych.bundle.hub import PREFIX
from diptych.bundle.licenses import LICENSE
from diptych.bundle.model_license import license_of
from diptych.core.address import redacted
from diptych.core.version import VERSION
from diptych.models.config import CLIPConfig
from diptych.models.third_party_config import TimmConfig, TransformersConfig
from diptych.models.timm_tower import pretrained_cfg
from diptych.training.config import TrainConfig


def origin(config: TrainConfig, *, step: int, train_split_hash: str) -> dict[str, str | int | float]:
    """Recipe, data, length and versions of the run that saves a bundle, by name. Secrets of addresses are removed.

    If the run starts from a model or from towers with pretrained weights, the origin contains their licenses.

    Args:
        config: config of the run.
        step: number of completed steps.
        train_split_hash: hash of the training data.
    """
    stated = _tower_licenses(config.model) if config.init is None else license_of(config.init)
    return {
        "recipe": config.recipe,
        **({"init": redacted(config.init)} if config.init is not None else {}),
        **({LICENSE: stated} if stated is not None else {}),
        "data": redacted(config.data.source),
        "train_split_hash": train_split_hash,
        "val_split": config.data.val_split,
        "val_fraction": config.data.val_fraction,
        "split_rule": config.data.split_rule,
        "steps": step,
        "batch_size": config.batch_size,
        "seed": config.seed,
        **({"ema": config.ema} if config.ema is not None else {}),
        "diptych": VERSION,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _tower_licenses(model: CLIPConfig) -> str | None:
    """The licenses of the weights that the towers start from, as far as they are known."""
    image, text, found = model.image, model.text, list[str | None]()
    if isinstance(image, TimmConfig) and image.pretrained is True:
        found.append(pretrained_cfg(image.name).get("license"))
    elif isinstance(image, TimmConfig) and isinstance(image.pretrained, str):
        found.append(license_of(image.pretrained.replace("hf-hub:", PREFIX)))
    if isinstance(text, TransformersConfig) and text.pretrained:
        name = text.name if text.pretrained is True else text.pretrained
        found.append(license_of(name) or license_of(f"{PREFIX}{name.removeprefix(PREFIX)}"))
    return ", ".join(dict.fromkeys(name for name in found if name)) or None
