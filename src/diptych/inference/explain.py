"""Which parts of a picture speak for a text. Shapes: X texts, E embedding, T tokens, R C rows and columns of a map."""

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

from diptych.core.sample import ImageInput
from diptych.images.sheet import SheetRow, contact_sheet
from diptych.images.tensors import normalize
from diptych.inference.embedder import Embedder, check_not_empty
from diptych.models.clip import CLIP
from diptych.models.convnet import ConvNet
from diptych.models.int8 import Int8Linear
from diptych.models.layers import Attention
from diptych.models.modified_resnet import ModifiedResNet
from diptych.models.vision_transformer import VisionTransformer

_COLD, _HOT = (0.05, 0.15, 0.6), (1.0, 0.25, 0.0)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A picture as the model sees it, and what in it speaks for each text."""

    picture: UInt8[ndarray, "H W 3"]
    texts: tuple[str, ...]
    cosine: Float32[ndarray, " X"]
    heat: Float32[ndarray, "X H W"]
    """Within [0, 1], for each text by itself: where it is 1 the picture speaks for it most."""

    def sheet(self, *, tile_px: int = 224) -> Image.Image:
        """The picture, and beside it a copy for each text under its heat."""
        tiles = [(Image.fromarray(self.picture), "as the model sees it")]
        for text, cosine, heat in zip(self.texts, self.cosine, self.heat, strict=True):
            tiles.append((Image.fromarray(_under(self.picture, heat)), f"{text} ({cosine:.3f})"))
        large = [(tile.resize((tile_px, tile_px), Image.Resampling.BICUBIC), caption) for tile, caption in tiles]
        return contact_sheet([SheetRow("What speaks for it", large)], tile_px=tile_px, columns=4, caption_lines=2)


def explain(embedder: Embedder, image: ImageInput, texts: Sequence[str]) -> Explanation:
    """The heat of each text over a picture.

    Of a vision transformer it is the gradient-weighted attention, followed through its layers (Chefer et al. 2021, "Generic
    attention-model explainability", sec. 3.2); of a ResNet the gradient-weighted activation of the last stage (Grad-CAM,
    Selvaraju et al. 2017). The image tower computes in float32, whatever the precision of the model.

    Several threads can call this with one embedder, also while other threads encode with it.

    Args:
        embedder: the model.
        image: the picture, of which the model sees the middle.
        texts: each explained by itself.

    Raises:
        ImageError: the picture cannot be read.
        DiptychError: there is no text.
    """
    return explain_pixels(embedder, embedder.pixels(image), texts)


def explain_pixels(embedder: Embedder, pixels: UInt8[ndarray, "3 H W"], texts: Sequence[str]) -> Explanation:
    """The heat of each text over a picture that is given as the model's input (`Embedder.pixels`).

    Raises:
        DiptychError: there is no text.
    """
    check_not_empty(texts, "text")
    config = embedder.bundle.config
    text_emb = torch.from_numpy(embedder.encode_texts(texts)).to(embedder.device)
    model = _own_float32(embedder.bundle.model)
    tower = model.image_tower
    follow = _follow_attention if isinstance(tower, VisionTransformer) else _follow_activation
    with torch.enable_grad():
        batch = normalize(torch.from_numpy(pixels[None]).to(embedder.device), config.pixels)
        batch.requires_grad_()  # The parameters of a frozen model require no gradient.
        cosine, maps = follow(tower, lambda: model.encode_image(batch)[0], text_emb)
    heat = functional.interpolate(maps[:, None], size=pixels.shape[1:], mode="bicubic", align_corners=False)[:, 0]
    heat = heat - heat.amin(dim=(1, 2), keepdim=True)
    heat = heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    return Explanation(
        picture=np.ascontiguousarray(pixels.transpose(1, 2, 0)),
        texts=tuple(texts),
        cosine=cosine.detach().cpu().numpy(),
        heat=heat.detach().float().cpu().numpy(),
    )


def _own_float32(model: CLIP) -> CLIP:
    """A model with a separate image tower. Float32 weights are shared; weights of another precision are converted.

    An explanation records activations with hooks on modules. Separate modules keep other threads' computations out of the
    record, and undisturbed.
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


def _follow_attention(
    tower: nn.Module, embed: Callable[[], Tensor], text_emb: Float[Tensor, "X E"]
) -> tuple[Float[Tensor, " X"], Float[Tensor, "X R C"]]:
    assert isinstance(tower, VisionTransformer)
    seen = _record_attention(tower)
    cosine = text_emb @ embed()
    maps = []
    for score in _contrasts(cosine):
        grads = torch.autograd.grad(score, seen, retain_graph=True)
        maps.append(_relevance([_kept(weight, grad) for weight, grad in zip(seen, grads, strict=True)], tower))
    return cosine, torch.stack(maps)


def _contrasts(cosine: Float[Tensor, " X"]) -> Float[Tensor, " X"]:
    """How much better each text fits than the others do; of a single text, how well it fits."""
    if len(cosine) == 1:
        return cosine
    return cosine - (cosine.sum() - cosine) / (len(cosine) - 1)


def _kept(weight: Float[Tensor, "1 heads A T"], grad: Float[Tensor, "1 heads A T"]) -> Float[Tensor, "A T"]:
    """Attention that speaks for the score, over all heads."""
    return (weight * grad).clamp_min(0).mean(dim=1)[0].detach()


def _relevance(layers: list[Float[Tensor, "_ _"]], tower: VisionTransformer) -> Float[Tensor, "R C"]:
    """What each patch adds to what is pooled, through all layers and around them."""
    num = layers[0].shape[1]
    told = torch.eye(num, device=layers[0].device)
    for attention in layers:
        if attention.shape[0] == num:
            told = told + attention @ told
        else:  # One query: the class token's in the last block, which keeps what it was, or the pooling's own.
            told = attention @ told + (told[:1] if tower.config.pooling == "cls" else 0)
    extra = tower.config.num_extra_tokens
    pooled = told.mean(dim=0) if told.shape[0] == num else told[0]
    return pooled[extra:].view(*tower.config.grid)


def _record_attention(tower: nn.Module) -> list[Tensor]:
    """A list to which the attention weights of every layer are appended, in order, during the forward pass."""
    seen: list[Tensor] = []
    for module in tower.modules():
        if isinstance(module, Attention):
            module.watcher = seen.append
    return seen


def _follow_activation(
    tower: nn.Module, embed: Callable[[], Tensor], text_emb: Float[Tensor, "X E"]
) -> tuple[Float[Tensor, " X"], Float[Tensor, "X R C"]]:
    assert isinstance(tower, ModifiedResNet | ConvNet)
    seen: list[Tensor] = []
    tower.stages[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    cosine = text_emb @ embed()
    maps = []
    for score in _contrasts(cosine):
        (grad,) = torch.autograd.grad(score, seen, retain_graph=True)
        maps.append((seen[0] * grad.mean(dim=(2, 3), keepdim=True)).sum(dim=1).clamp_min(0)[0].detach())
    return cosine, torch.stack(maps)


def _under(picture: UInt8[ndarray, "H W 3"], heat: Float32[ndarray, "H W"]) -> UInt8[ndarray, "H W 3"]:
    """The picture in grey, where it is cold dim and blue, where it is hot bright and red."""
    grey = picture.mean(axis=2, keepdims=True) / 255
    share = heat[:, :, None]
    colour = np.array(_COLD) * (1 - share) + np.array(_HOT) * share
    mixed = grey * (0.35 + 0.25 * share) + colour * (0.25 + 0.3 * share)
    return (255 * np.clip(mixed, 0, 1)).astype(np.uint8)
