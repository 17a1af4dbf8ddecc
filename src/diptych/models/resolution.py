"""The same weights at another resolution."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diptych.images.transforms import Pixels
from diptych.models.clip import CLIP


def at_resolution(model: CLIP, image_px: Pixels) -> CLIP:
    """A model for pictures of another size: the same weights, position embeddings resized.

    Bicubic with anti-aliasing on the grid of patches (of places, for a ResNet), as open_clip's `resize_pos_embed`.

    Raises:
        ConfigError: the size does not go with the patch size.
    """
    image = replace(model.config.image, image_px=image_px)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("image_tower.position_emb", "image_tower.pool.position_emb"):
        if name in weights:
            num_extra = len(weights[name]) - model.config.image.grid[0] * model.config.image.grid[1]
            weights[name] = resize_positions(
                weights[name], before=model.config.image.grid, after=image.grid, num_extra=num_extra
            )
    return CLIP.from_weights(replace(model.config, image=image), weights).train(model.training)


def resize_positions(
    position_emb: Float[Tensor, "T D"], *, before: tuple[int, int], after: tuple[int, int], num_extra: int
) -> Float[Tensor, "T2 D"]:
    """Position embeddings of a grid of another size; those of the extra tokens in front stay as they are."""
    if before == after:
        return position_emb
    extra, grid = position_emb[:num_extra], position_emb[num_extra:]
    as_image = grid.float().T.unflatten(1, before)[None]
    resized = functional.interpolate(as_image, size=after, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([extra, resized[0].flatten(1).T.to(grid.dtype)])
