"""The origin of a bundle, which is stored in the bundle."""

import platform

import torch

from diptych.core.address import redacted
from diptych.core.version import VERSION
from diptych.training.config import TrainConfig


def origin(config: TrainConfig, *, step: int, train_split_hash: str) -> dict[str, str | int | float]:
    """Recipe, data, length and versions of the run that saves a bundle, by name. Secrets of addresses are removed.

    Args:
        config: config of the run.
        step: number of completed steps.
        train_split_hash: hash of the training data.
    """
    return {
        "recipe": config.recipe,
        **({"init": redacted(config.init)} if config.init is not None else {}),
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
