"""How large a model is: parameters, and multiply-adds for one image and one text."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.images.transforms import height_width
from diptych.models.clip import image_tower
from diptych.models.config import STAGED, CLIPConfig, ImageConfig, TextConfig
from diptych.models.text_transformer import TextTransformer

_FEW, _MORE = 2, 3
"""Layers that are counted: every layer between the first and the last costs what any other does."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Counts, by tower."""

    parameters: int
    image_parameters: int
    text_parameters: int
    image_multiply_adds: int
    """For one image."""
    text_multiply_adds: int
    """For one text that fills the context."""


class _Count(NamedTuple):
    parameters: int
    multiply_adds: int


def model_size(config: CLIPConfig) -> ModelSize:
    """Counted on towers without storage; takes no memory however large the model is."""
    image, text = _count(_alike(config.image), config.embed_dim), _count(_alike(config.text), config.embed_dim)
    return ModelSize(
        parameters=image.parameters + text.parameters + 1 + (config.init_logit_bias is not None),
        image_parameters=image.parameters,
        text_parameters=text.parameters,
        image_multiply_adds=image.multiply_adds,
        text_multiply_adds=text.multiply_adds,
    )


def _alike(tower: ImageConfig | TextConfig) -> ImageConfig | TextConfig:
    """Of towers that differ in their activation alone, one is counted."""
    return tower if isinstance(tower, STAGED) else replace(tower, activation="gelu")


@lru_cache
def _count(tower: ImageConfig | TextConfig, embed_dim: int) -> _Count:
    if not isinstance(tower, STAGED) and tower.layers > _MORE:
        few, more = (_count(replace(tower, layers=layers), embed_dim) for layers in (_FEW, _MORE))
        further = tower.layers - _FEW
        return _Count(*(a + further * (b - a) for a, b in zip(few, more, strict=True)))
    given: tuple[torch.Tensor, ...]
    with torch.device("meta"):
        if isinstance(tower, TextConfig):
            module: torch.nn.Module = TextTransformer(tower, embed_dim)
            length = tower.context_length
            given = (torch.empty(1, length, dtype=torch.int64), torch.tensor([length], device="cpu"))
        else:
            module = image_tower(tower, embed_dim)
            given = (torch.empty(1, 3, *height_width(tower.image_px)),)
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        module.eval().requires_grad_(False)(*given)
    return _Count(sum(parameter.numel() for parameter in module.parameters()), flops.get_total_flops() // 2)
