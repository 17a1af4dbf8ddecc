"""Heat maps of the image regions that increase the similarity to a text.

Shapes: X texts, E embedding, A query tokens, T tokens, H W pixels, R C rows and columns of a map.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from diptych.bundle.folder import require_bundle
from diptych.core.errors import ConfigError
from diptych.core.lists import check_not_empty
from diptych.core.sample import ImageInput
from diptych.images.sheet import SheetRow, contact_sheet
from diptych.images.tensors import normalize
from diptych.inference.embedder import Embedder
from diptych.models.clip import CLIP
from diptych.models.config import ImageConfig, ViTConfig
from diptych.models.convnet import ConvNet
from diptych.models.int8 import Int8Linear
from diptych.models.layers import Attention
from diptych.models.modified_resnet import ModifiedResNet
from diptych.models.timm_tower import TimmTower
from diptych.models.vision_transformer import EmbeddingPool, VisionTransformer

_COLD, _HOT = (0.05, 0.15, 0.6), (1.0, 0.25, 0.0)
"""RGB colors of heat 0 and heat 1."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Heat maps of some texts over an image."""

    picture: UInt8[ndarray, "H W 3"]
    """The image after the model's image transform."""
    texts: tuple[str, ...]
    """The texts."""
    cosine: Float32[ndarray, " X"]
    """Cosine similarity of the image and each text, within [-1, 1]."""
    heat: Float32[ndarray, "X H W"]
    """One heat map per text, scaled to [0, 1]. Regions with values near 1 increase the similarity most."""

    def sheet(self, *, tile_px: int = 224) -> Image.Image:
        """A contact sheet with the image and, for each text, a copy with its heat map. Tiles are `tile_px` pixels wide."""
        tiles = [(Image.fromarray(self.picture), "as the model sees it")]
        for text, cosine, heat in zip(self.texts, self.cosine, self.heat, strict=True):
            tiles.append((Image.fromarray(_overlay(self.picture, heat)), f"{text} ({cosine:.3f})"))
        large = [(tile.resize((tile_px, tile_px), Image.Resampling.BICUBIC), caption) for tile, caption in tiles]
        return contact_sheet([SheetRow("What speaks for it", large)], tile_px=tile_px, columns=4, caption_lines=2)


def explain(embedder: Embedder, image: ImageInput, texts: Sequence[str]) -> Explanation:
    """Compute heat maps of the image regions that increase the similarity to each text.

    For a vision transformer, the heat is the gradient-weighted attention, propagated through the layers (Chefer et al. 2021,
    "Generic attention-model explainability", sec. 3.2). For a ResNet or a convolutional network, it is the gradient-weighted
    activation of the last stage (Grad-CAM, Selvaraju et al. 2017). With several texts, the score of a text is its cosine
    similarity minus the mean of the others. The image tower computes in float32 for every precision of the model.

    The function is thread-safe: several threads can share an embedder.

    Args:
        embedder: the loaded model.
        image: the image. The heat maps cover the part of it that the model's image transform keeps.
        texts: the texts, one heat map each.

    Raises:
        ImageError: the image cannot be read.
        DiptychError: there is no text.
    """
    return explain_pixels(embedder, embedder.pixels(image), texts)


def explain_pixels(embedder: Embedder, pixels: UInt8[ndarray, "3 H W"], texts: Sequence[str]) -> Explanation:
    """Like `explain`, for an image that was transformed by `Embedder.pixels`.

    Raises:
        DiptychError: there is no text.
        ConfigError: the model is an ONNX export, or it has a timm image tower.
    """
    check_not_empty(texts, "text")
    bundle = require_bundle(embedder.bundle, "a heat map")
    device = next(bundle.model.parameters()).device
    text_emb = torch.from_numpy(embedder.encode_texts(texts)).to(device)
    model = _copy_in_float32(bundle.model)
    recorded, to_map = _record(model.image_tower)
    with torch.enable_grad():
        batch = normalize(torch.from_numpy(pixels[None]).to(device), bundle.config.pixels)
        batch.requires_grad_()  # Gradients must flow even if all parameters are frozen.
        cosine = text_emb @ model.encode_image(batch)[0]
        maps = [to_map(torch.autograd.grad(score, recorded, retain_graph=True)) for score in _contrasts(cosine)]
    heat = _at_full_size(torch.stack(maps), bundle.config.image, pixels.shape[1:])
    heat = heat - heat.amin(dim=(1, 2), keepdim=True)
    heat = heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    return Explanation(
        picture=np.ascontiguousarray(pixels.transpose(1, 2, 0)),
        texts=tuple(texts),
        cosine=cosine.detach().cpu().numpy(),
        heat=heat.detach().float().cpu().numpy(),
    )


def _at_full_size(maps: Float[Tensor, "X R C"], image: ImageConfig, size: tuple[int, ...]) -> Float[Tensor, "X H W"]:
    """Return the maps at the size of the image. Edge pixels outside all patches have the value of the nearest covered pixel."""
    covered = image.covered_px if isinstance(image, ViTConfig) else size
    heat = functional.interpolate(maps[:, None], size=covered, mode="bicubic", align_corners=False)
    rest = (0, size[1] - covered[1], 0, size[0] - covered[0])
    return functional.pad(heat, rest, mode="replicate")[:, 0] if any(rest) else heat[:, 0]


def _copy_in_float32(model: CLIP) -> CLIP:
    """A copy of the model with a separate image tower. It shares float32 weights and converts all others.

    An explanation records activations with hooks on modules. With separate modules, the hooks do not record or disturb the
    computations of other threads.
    """
    tower = model.image_tower
    memo: dict[int, nn.Module | Tensor] = {id(model.text_tower): model.text_tower}
    for module in tower.modules():
        if isinstance(module, Int8Linear):
            memo[id(module)] = module.to_linear()
    for parameter in tower.parameters():
        is_float32 = parameter.dtype == torch.float32
        memo[id(parameter)] = parameter if is_float32 else nn.Parameter(parameter.detach().float())
    memo |= {id(buffer): buffer for buffer in tower.buffers()}
    return copy.deepcopy(model, memo)


def _contrasts(cosine: Float[Tensor, " X"]) -> Float[Tensor, " X"]:
    """The cosine of each text minus the mean of the others; unchanged for a single text."""
    if len(cosine) == 1:
        return cosine
    return cosine - (cosine.sum() - cosine) / (len(cosine) - 1)


def _positive_attention(
    weight: Float[Tensor, "1 heads A T"], grad: Float[Tensor, "1 heads A T"]
) -> Float[Tensor, "A T"]:
    """The positive part of attention times gradient, averaged over the heads (Chefer et al. 2021)."""
    return (weight * grad).clamp_min(0).mean(dim=1)[0].detach()


def _relevance(layers: list[Float[Tensor, "_ _"]], tower: VisionTransformer) -> Float[Tensor, "R C"]:
    """The relevance of each patch for the pooled vector, through attention and residual connections of all layers."""
    num = layers[0].shape[1]
    relevance = torch.eye(num, device=layers[0].device)  # T T
    for attention in layers:
        if attention.shape[0] == num:
            relevance = relevance + attention @ relevance
        else:  # One query: the class token in the last block, with a residual connection, or the query of a pool.
            relevance = attention @ relevance + (relevance[:1] if tower.config.pooling == "cls" else 0)  # 1 T
    extra = tower.config.num_extra_tokens
    pooled = relevance.mean(dim=0) if relevance.shape[0] == num else relevance[0]
    return pooled[extra:].view(*tower.config.grid)


def _record(tower: nn.Module) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Float[Tensor, "R C"]]]:
    """A list that the forward pass fills with tensors, and a function that computes a heat map from their gradients.

    For a vision transformer, the tensors are the attention weights of all layers; otherwise, the activations of the last
    stage.
    """
    recorded: list[Tensor] = []
    if isinstance(tower, VisionTransformer):
        for module in tower.modules():
            if isinstance(module, Attention | EmbeddingPool):
                module.hook = recorded.append
        return recorded, lambda grads: _relevance(list(map(_positive_attention, recorded, grads)), tower)
    if isinstance(tower, TimmTower):
        raise ConfigError(f"there is no heat map for timm towers; this image tower is {tower.config.name}")
    assert isinstance(tower, ModifiedResNet | ConvNet)
    tower.stages[-1].register_forward_hook(lambda _module, _inputs, output: recorded.append(output))
    return recorded, lambda grads: _grad_cam(recorded[0], grads[0])


def _grad_cam(
    activations: Float[Tensor, "1 channels R C"], grad: Float[Tensor, "1 channels R C"]
) -> Float[Tensor, "R C"]:
    """The positive part of the activations, weighted by the mean gradient of their channel (Selvaraju et al. 2017)."""
    return (activations * grad.mean(dim=(2, 3), keepdim=True)).sum(dim=1).clamp_min(0)[0].detach()


def _overlay(picture: UInt8[ndarray, "H W 3"], heat: Float32[ndarray, "H W"]) -> UInt8[ndarray, "H W 3"]:
    """The image in gray, blended with dim blue where the heat is low and with bright red where it is high."""
    gray = picture.mean(axis=2, keepdims=True) / 255
    share = heat[:, :, None]
    color = np.array(_COLD) * (1 - share) + np.array(_HOT) * share
    mixed = gray * (0.35 + 0.25 * share) + color * (0.25 + 0.3 * share)
    return (255 * np.clip(mixed, 0, 1)).astype(np.uint8)
