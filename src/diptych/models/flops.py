"""Floating-point operations of a training step.

An operation is a multiplication or an addition, so a multiply-add counts as two. The count includes matrix products,
convolutions and attention, in the forward and the backward pass. A product with weights costs three products of the same size:
one forward, one for the gradient of its input and one for that of its weights.

The count is what the model requires, not what a kernel does. Texts have their real lengths. Causal attention has only the pairs
of a query and a key at the same or an earlier position. If a tower pools one token, the last block computes only that token,
with one query per sequence (`single_query.py`). The count excludes operations that are repeated to save memory (gradient
checkpointing, micro-batches, attention scores in the backward pass), padding, element-wise operations, the optimizer, the batch
accuracies and a teacher. The operations of timm and transformers towers are counted on the `meta` device; for text encoders,
they are modeled as a quadratic function of the text length.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import (
    CLIPConfig,
    ConvNetConfig,
    ResNetConfig,
    TextConfig,
    TimmConfig,
    TransformersConfig,
    ViTConfig,
)
from diptych.models.depth import locate_parameter, num_layers_of
from diptych.models.layers import hidden_width

Frozen: TypeAlias = int | Literal["all"] | None
"""What is frozen in a tower: everything, the first blocks or stages and all before them, or nothing (`LockConfig`)."""


class _Part(NamedTuple):
    """Multiply-adds of a part of a tower in the forward pass."""

    depth: int
    """Depth of its parameters, as in `depth.py`."""
    multiply_adds: int
    is_first: bool = False
    """Whether it reads the pixels, whose gradient is not computed."""

    def operations(self, frozen: Frozen) -> int:
        """Operations of the forward and the backward pass."""
        is_frozen = frozen == "all" or (frozen is not None and self.depth <= frozen)
        return 2 * self.multiply_adds * (1 if is_frozen else 2 if self.is_first else 3)


class _Sequences(NamedTuple):
    """The sequences that a transformer encodes, as sums over them."""

    num: int
    tokens: int
    pairs: int
    """Pairs of a query and a key that it attends to."""


def step_flops(
    config: CLIPConfig,
    *,
    num_images: int,
    text_lengths: Sequence[int] | Tensor,
    num_candidates: int | None = None,
    image_px: int | None = None,
    frozen_image: Frozen = None,
    frozen_text: Frozen = None,
) -> int:
    """Operations of one training step of one process, forward and backward; see the module for what is counted.

    Args:
        config: the model.
        num_images: number of images that this process encodes.
        text_lengths: number of tokens of each text that it encodes; a tensor should be on the CPU.
        num_candidates: number of texts that each image is compared with, over all processes; by default `num_images`.
        image_px: side to which a convolutional network's images are resized; None for the model's own size.
        frozen_image: what is frozen in the image tower.
        frozen_text: what is frozen in the text tower.

    >>> from diptych.presets import preset
    >>> round(step_flops(preset("vit-b-32"), num_images=1024, text_lengths=[14] * 1024) / 1024 / 1e9, 1)
    27.1
    """
    total = _text_operations(config, torch.as_tensor(text_lengths, dtype=torch.int64), frozen_text)
    if isinstance(config.image, ViTConfig):
        image_parts = _image_parts(config.image, config.embed_dim, num_images)
        total += sum(part.operations(frozen_image) for part in image_parts)
    elif isinstance(config.image, TimmConfig):
        total += num_images * _timm_operations(config.image, config.embed_dim, frozen_image)
    else:
        total += num_images * _staged_operations(config.image, config.embed_dim, frozen_image, image_px)
    return total + 6 * num_images * (num_images if num_candidates is None else num_candidates) * config.embed_dim


def nominal_flops(config: CLIPConfig, *, num_images: int) -> int:
    """Operations of a step as publications count them: three forward passes, each of a text with the whole context.

    All tokens pass through all blocks, attention is not halved for causal texts, and the loss is not counted.

    >>> from diptych.presets import preset
    >>> round(nominal_flops(preset("vit-b-32"), num_images=1) / 3 / 1e9, 2)  # The tables of open_clip have 14.78.
    14.78
    """
    text, length = config.text, config.text.context_length
    if isinstance(text, TransformersConfig):
        total = 3 * _text_operations(config, torch.tensor([length]), "all")
    else:
        parts = _text_parts(text, config.embed_dim, _Sequences(1, length, length * length), is_pooled=False)
        total = sum(2 * 3 * part.multiply_adds for part in parts)
    if isinstance(config.image, ViTConfig):
        image_parts = _image_parts(config.image, config.embed_dim, 1, is_nominal=True)
        total += sum(2 * 3 * part.multiply_adds for part in image_parts)
    elif isinstance(config.image, TimmConfig):
        total += 3 * _timm_operations(config.image, config.embed_dim, "all")
    else:
        total += 3 * _staged_operations(config.image, config.embed_dim, "all", None)
    return num_images * total


def _text_operations(config: CLIPConfig, lengths: Tensor, frozen: Frozen) -> int:
    """Operations of the text tower for texts of these lengths, forward and backward."""
    text = config.text
    if not isinstance(text, TransformersConfig) and text.layout == "siglip":  # It attends to padding.
        lengths = torch.full_like(lengths, text.context_length)
    num, tokens, squares = len(lengths), int(lengths.sum()), int((lengths * lengths).sum())
    if isinstance(text, TransformersConfig):
        one, two, three = (_encoder_operations(text, config.embed_dim, frozen, length) for length in (1, 2, 3))
        twice_square = three - 2 * two + one
        linear = two - one - 3 * twice_square // 2
        return num * (one - linear - twice_square // 2) + tokens * linear + squares * twice_square // 2
    texts = _Sequences(num, tokens, (squares + tokens) // 2 if text.is_causal else squares)
    return sum(part.operations(frozen) for part in _text_parts(text, config.embed_dim, texts))


def _text_parts(
    config: TextConfig, embed_dim: int, texts: _Sequences, *, is_pooled: bool | None = None
) -> Iterator[_Part]:
    is_pooled = config.pooling != "mean" if is_pooled is None else is_pooled
    if config.pooling == "appended":
        texts = _with_one_more(texts)
    yield from _blocks(config, texts, is_pooled=is_pooled)
    if config.pooling == "appended":  # In the other blocks, the appended token is one more query per text.
        yield from (_Part(depth, _pooled(config, texts)) for depth in range(1, config.layers + (not is_pooled)))
    if config.has_projection:
        yield _Part(config.layers + 1, texts.num * config.width * embed_dim)


def _with_one_more(texts: _Sequences) -> _Sequences:
    """Return the sequences that an appended token attends to: each text and one more position."""
    return _Sequences(texts.num, texts.tokens + texts.num, texts.pairs + texts.tokens + texts.num)


def _image_parts(config: ViTConfig, embed_dim: int, num: int, *, is_nominal: bool = False) -> Iterator[_Part]:
    rows, columns = config.grid
    yield from _stem(config, num)
    num_kept = max(1, int(rows * columns * (1 - (0.0 if is_nominal else config.patch_dropout))))
    length = num_kept + config.num_extra_tokens
    images = _Sequences(num, num * length, num * length * length)
    yield from _blocks(config, images, is_pooled=config.pooling == "cls" and not is_nominal)
    after = config.layers + 1
    if config.pooling == "attention":
        yield _Part(after, _pooled(config, images))
    if config.pooling == "coca":
        heads = config.pool_heads or config.heads
        yield _Part(after, num * (embed_dim + 2 * config.width) * embed_dim + 2 * images.tokens * heads * config.width)
        yield _Part(after, embed_dim * embed_dim)  # The query is the same for all images.
    if config.layout != "siglip":
        yield _Part(after, num * (embed_dim if config.pooling == "coca" else config.width) * embed_dim)


def _stem(config: ViTConfig, num: int) -> Iterator[_Part]:
    rows, columns = config.grid
    if config.stem == "patch":
        height, width = height_width(config.patch_px)
        yield _Part(0, num * rows * columns * 3 * height * width * config.width, is_first=True)
        return
    halvings = height_width(config.patch_px)[0].bit_length() - 1
    channels = [3, *(max(16, config.width >> (halvings - 1 - i)) for i in range(halvings))]
    for number, (before, after) in enumerate(pairwise(channels), start=1):
        pixels = rows * columns * 4 ** (halvings - number)
        yield _Part(0, num * pixels * 9 * before * after, is_first=number == 1)
    yield _Part(0, num * rows * columns * channels[-1] * config.width)


def _blocks(config: ViTConfig | TextConfig, given: _Sequences, *, is_pooled: bool) -> Iterator[_Part]:
    """The blocks of a transformer; `is_pooled` if the last one computes a single token per sequence."""
    width = config.width
    per_token = 4 * width * width + 2 * width * hidden_width(width, config.mlp_ratio)
    whole = given.tokens * per_token + 2 * given.pairs * width
    for depth in range(1, config.layers + 1):
        yield _Part(depth, _pooled(config, given) if is_pooled and depth == config.layers else whole)


def _pooled(config: ViTConfig | TextConfig, given: _Sequences) -> int:
    """Multiply-adds of attention with one query per sequence, and of the MLP after it."""
    width = config.width
    per_sequence = 4 * width * width + 2 * width * hidden_width(width, config.mlp_ratio)
    return given.num * per_sequence + 2 * given.tokens * config.heads * width


@lru_cache(maxsize=64)
def _staged_operations(
    config: ResNetConfig | ConvNetConfig, embed_dim: int, frozen: Frozen, image_px: int | None
) -> int:
    """Operations of a convolutional tower for one image, forward and backward, counted on the `meta` device."""
    whole = CLIPConfig(embed_dim=embed_dim, image=config)
    size = height_width(config.image_px) if image_px is None else (image_px, image_px)
    pixels = torch.empty(2, 3, *size, device="meta")  # Two, because batch norms need more than one value per channel.
    return _counted(whole, "image_tower", frozen, pixels) // len(pixels)


@lru_cache(maxsize=64)
def _timm_operations(config: TimmConfig, embed_dim: int, frozen: Frozen) -> int:
    """Operations of a timm tower for one image: three times the forward pass, less an equal share for each frozen layer.

    The backward pass is not counted on the `meta` device, because PyTorch's counter treats grouped convolutions as dense.
    """
    whole = CLIPConfig(embed_dim=embed_dim, image=config)
    pixels = torch.empty(1, 3, *height_width(config.image_px), device="meta")
    forward = _counted(whole, "image_tower", "all", pixels)
    num_layers = num_layers_of("image", whole)
    num_trained = 0 if frozen == "all" else num_layers - (frozen or 0)
    return forward + 2 * forward * num_trained // num_layers


@lru_cache(maxsize=64)
def _encoder_operations(config: TransformersConfig, embed_dim: int, frozen: Frozen, length: int) -> int:
    """Operations of a transformers encoder for one text, forward and backward, counted on the `meta` device."""
    whole = CLIPConfig(embed_dim=embed_dim, text=config)
    ids = torch.zeros(1, length, dtype=torch.int64, device="meta")
    return _counted(whole, "text_tower", frozen, ids, torch.tensor([length]))


def _counted(config: CLIPConfig, name: str, frozen: Frozen, *inputs: Tensor) -> int:
    tower = CLIP.without_memory(config).get_submodule(name)
    for parameter_name, parameter in tower.named_parameters():
        location = locate_parameter(f"{name}.{parameter_name}", config)
        assert location is not None
        parameter.requires_grad_(frozen != "all" and (frozen is None or location.depth > frozen))
    tower.train(name == "text_tower" or frozen != "all")
    with FlopCounterMode(display=False) as counted:
        out = tower(*inputs)
        if out.requires_grad:
            out.sum().backward()
    return counted.get_total_flops()
