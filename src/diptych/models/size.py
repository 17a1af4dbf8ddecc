"""How large a model is: parameters, and multiply-adds for one image and one text."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig


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
    with torch.device("meta"):
        model = CLIP(config).eval()
        pixels = torch.empty(1, 3, config.image.image_px, config.image.image_px)
        ids = torch.empty(1, config.text.context_length, dtype=torch.int64)
        lengths = torch.empty(1, dtype=torch.int64)
        with torch.no_grad(), FlopCounterMode(display=False) as image_flops:
            model.image_tower(pixels)
        with torch.no_grad(), FlopCounterMode(display=False) as text_flops:
            model.text_tower(ids, lengths)
    return ModelSize(
        parameters=_count(model),
        image_parameters=_count(model.image_tower),
        text_parameters=_count(model.text_tower),
        image_multiply_adds=image_flops.get_total_flops() // 2,
        text_multiply_adds=text_flops.get_total_flops() // 2,
    )


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
