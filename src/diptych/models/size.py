"""Parameters of a model, and its multiply-adds for one image and one text."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.images.transforms import height_width
from diptych.models.clip import image_tower, text_tower
from diptych.models.config import (
    CLIPConfig,
    ImageConfig,
    TextConfig,
    TextTowerConfig,
    TransformersConfig,
    ViTConfig,
)

_FEW, _MORE = 2, 3
"""Numbers of layers that are measured. Others are extrapolated, because all inner layers have the same cost."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Parameters and multiply-adds of each tower."""

    parameters: int
    """Of both towers, the temperature and the logit bias."""
    image_parameters: int
    text_parameters: int
    image_multiply_adds: int
    """For one image."""
    text_multiply_adds: int
    """For one text of `context_length` tokens."""


class _Count(NamedTuple):
    parameters: int
    multiply_adds: int


def model_size(config: CLIPConfig) -> ModelSize:
    """The size of the model of this config.

    The towers are built on the `meta` device, so that counting needs no memory for weights.
    """
    image, text = (_count(_cache_key(tower), config.embed_dim) for tower in (config.image, config.text))
    return ModelSize(
        parameters=image.parameters + text.parameters + 1 + (config.init_logit_bias is not None),
        image_parameters=image.parameters,
        text_parameters=text.parameters,
        image_multiply_adds=image.multiply_adds,
        text_multiply_adds=text.multiply_adds,
    )


def _cache_key(tower: ImageConfig | TextTowerConfig) -> ImageConfig | TextTowerConfig:
    """The tower with a fixed activation, which does not change its size: towers that differ in it are counted once."""
    return replace(tower, activation="gelu") if isinstance(tower, ViTConfig | TextConfig) else tower


@lru_cache
def _count(tower: ImageConfig | TextTowerConfig, embed_dim: int) -> _Count:
    if isinstance(tower, ViTConfig | TextConfig) and tower.layers > _MORE:
        few, more = (_count(replace(tower, layers=layers), embed_dim) for layers in (_FEW, _MORE))
        num_other = tower.layers - _FEW
        return _Count(*(a + num_other * (b - a) for a, b in zip(few, more, strict=True)))
    inputs: tuple[torch.Tensor, ...]
    with torch.device("meta"):
        if isinstance(tower, TextConfig | TransformersConfig):
            module: torch.nn.Module = text_tower(tower, embed_dim)
            length = tower.context_length
            inputs = (torch.empty(1, length, dtype=torch.int64), torch.tensor([length], device="cpu"))
        else:
            module = image_tower(tower, embed_dim)
            inputs = (torch.empty(1, 3, *height_width(tower.image_px)),)
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        module.eval().requires_grad_(False)(*inputs)
    return _Count(sum(parameter.numel() for parameter in module.parameters()), flops.get_total_flops() // 2)
