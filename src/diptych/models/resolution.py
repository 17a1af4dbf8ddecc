"""Change of a model's image size."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diptych.core.errors import ConfigError
from diptych.images.transforms import Pixels, height_width
from diptych.models.clip import CLIP
from diptych.models.config import TimmConfig


def at_resolution(model: CLIP, image_px: Pixels) -> CLIP:
    """A copy of the model for another image size, with resized position embeddings.

    The embeddings are resized on the grid of patches (for a ResNet, of the last feature map) by bicubic interpolation with
    anti-aliasing, as in open_clip's `resize_pos_embed`.

    Raises:
        ConfigError: the image size is not a multiple of the patch size or stride.
    """
    before, image = model.config.image, replace(model.config.image, image_px=image_px)
    if isinstance(image, TimmConfig) or isinstance(before, TimmConfig):
        return _timm_at_resolution(model, image_px)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("image_tower.position_emb", "image_tower.pool.position_emb"):
        if name in weights:
            num_extra = len(weights[name]) - before.grid[0] * before.grid[1]
            weights[name] = resize_positions(weights[name], before=before.grid, after=image.grid, num_extra=num_extra)
    pixels = model.config.pixels
    if pixels.resize_px is not None:  # Crop the same fraction of the image.
        short, new_short = (min(height_width(px)) for px in (before.image_px, image_px))
        pixels = replace(pixels, resize_px=round(pixels.resize_px * new_short / short))
    return CLIP.from_weights(replace(model.config, image=image, pixels=pixels), weights).train(model.training)


def _timm_at_resolution(model: CLIP, image_px: Pixels) -> CLIP:
    config = replace(model.config, image=replace(model.config.image, image_px=image_px))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        return CLIP.from_weights(config, weights).train(model.training)
    except RuntimeError:
        raise ConfigError(
            f"the image tower has position embeddings for {model.config.image.image_px} px and does not support {image_px} px"
        ) from None


def resize_positions(
    position_emb: Float[Tensor, "T D"], *, before: tuple[int, int], after: tuple[int, int], num_extra: int
) -> Float[Tensor, "T2 D"]:
    """Position embeddings resized from the grid `before` to the grid `after`; the first `num_extra` rows are unchanged.

    >>> resize_positions(torch.zeros(1 + 4, 8), before=(2, 2), after=(3, 4), num_extra=1).shape
    torch.Size([13, 8])
    """
    if before == after:
        return position_emb
    extra, grid = position_emb[:num_extra], position_emb[num_extra:]
    as_image = grid.float().T.unflatten(1, before)[None]  # 1 D rows columns
    resized = functional.interpolate(as_image, size=after, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([extra, resized[0].flatten(1).T.to(grid.dtype)])
