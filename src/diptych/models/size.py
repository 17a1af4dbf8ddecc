"""How large a model is: parameters, and multiply-adds for one image and one text."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ViTConfig


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


def model_size(config: CLIPConfig) -> ModelSize:
    """Counted on a model without storage; takes no memory however large the model is."""
    image = replace(config.image, activation="gelu") if isinstance(config.image, ViTConfig) else config.image
    return _count_all(replace(config, image=image, text=replace(config.text, activation="gelu")))


@lru_cache
def _count_all(config: CLIPConfig) -> ModelSize:
    """Of models that differ in their activation alone, one is counted."""
    with torch.device("meta"):
        model = CLIP(config).eval().requires_grad_(False)
        pixels = torch.empty(1, 3, *height_width(config.image.image_px))
        ids = torch.empty(1, config.text.context_length, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as image_flops:
        model.image_tower(pixels)
    with torch.no_grad(), FlopCounterMode(display=False) as text_flops:
        model.text_tower(ids, torch.tensor([config.text.context_length]))
    return ModelSize(
        parameters=_count(model),
        image_parameters=_count(model.image_tower),
        text_parameters=_count(model.text_tower),
        image_multiply_adds=image_flops.get_total_flops() // 2,
        text_multiply_adds=text_flops.get_total_flops() // 2,
    )


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
