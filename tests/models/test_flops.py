"""Operations of a step against PyTorch's counter, which counts the products that are computed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ConvNetConfig, ImageConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.models.flops import Frozen, nominal_flops, step_flops
from diptych.presets import preset
from diptych.training.optim.freeze import LockConfig, apply_freeze

WIDTH, LAYERS, HEADS, EMBED = 32, 3, 2, 24
SIZE = {"width": WIDTH, "layers": LAYERS, "heads": HEADS}
VIT = ViTConfig(image_px=32, patch_px=8, width=WIDTH, layers=LAYERS, heads=HEADS)
TEXT = TextConfig(vocab_size=50, context_length=12, width=WIDTH, layers=LAYERS, heads=HEADS)
LENGTHS = (5, 7, 7, 9, 12)
IMAGES: dict[str, ImageConfig] = {
    "cls": VIT,
    "patch dropout": replace(VIT, patch_dropout=0.5),
    "conv stem, mean": replace(VIT, stem="conv", pooling="mean"),
    "siglip": replace(VIT, layout="siglip", pooling="attention"),
    "coca": replace(VIT, pooling="coca", pool_heads=4),
    "convnet": ConvNetConfig(image_px=32, stem_stride=2, widths=(8, 16), layers=(1, 2)),
    "resnet": ResNetConfig(image_px=32, layers=(1, 1, 1, 1), width=8, heads=4),
}
TEXTS = {
    "causal": TEXT,
    "cls": replace(TEXT, is_causal=False, pooling="cls"),
    "mean": replace(TEXT, is_causal=False, pooling="mean"),
    "siglip": replace(TEXT, is_causal=False, layout="siglip"),
    "siglip, end": replace(TEXT, is_causal=False, layout="siglip", pooling="end"),
    "appended": replace(TEXT, pooling="appended"),
}


def _config(image: ImageConfig, text: TextConfig) -> CLIPConfig:
    is_siglip = isinstance(image, ViTConfig) and image.layout == "siglip"
    return CLIPConfig(embed_dim=WIDTH if is_siglip else EMBED, image=image, text=text)


def _counted(config: CLIPConfig, lock: LockConfig | None = None, *, image_px: int = 32) -> int:
    """PyTorch's count for a step on five images and texts, with the loss's product."""
    model = CLIP(config).train()
    apply_freeze(model, lock or LockConfig())
    ids = torch.ones(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    ids[:, 0] = torch.arange(len(LENGTHS)) + 1  # No common prefixes, which a CPU would encode once.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = model(torch.rand(len(LENGTHS), 3, image_px, image_px), ids, torch.tensor(LENGTHS))
        # The gradients of both embeddings are computed even if a tower is frozen.
        image_emb, text_emb = (emb + torch.zeros_like(emb).requires_grad_() for emb in (out.image_emb, out.text_emb))
        (image_emb @ text_emb.T).sum().backward()
    return counter.get_total_flops()


def _formula(config: CLIPConfig, **options: Any) -> int:
    return step_flops(config, num_images=len(LENGTHS), text_lengths=LENGTHS, **options)


@pytest.mark.parametrize("text", list(TEXTS))
@pytest.mark.parametrize("image", list(IMAGES))
def test_operations_are_those_that_are_computed(image: str, text: str) -> None:
    config = _config(IMAGES[image], TEXTS[text])
    # PyTorch counts the masked half of causal attention, too: two products, forward and twice backward, in all but the last
    # block, of each pair above the diagonal.
    lengths = {"causal": LENGTHS, "appended": [length + 1 for length in LENGTHS]}.get(text, ())
    masked = sum(length * (length - 1) // 2 for length in lengths)
    assert _formula(config) == _counted(config) - 6 * 2 * WIDTH * masked * (LAYERS - 1)


@pytest.mark.parametrize(("image", "text"), [("all", None), (None, "all"), ("all", 2)])
def test_frozen_towers_have_no_gradients(image: Frozen, text: Frozen) -> None:
    config = _config(VIT, TEXTS["cls"])
    counted = _counted(config, LockConfig(image=image, text=text))
    # The gradient of the first trained block's input is part of the formula, although nothing needs it.
    most = counted if text != 2 else 1.05 * counted
    assert counted <= _formula(config, frozen_image=image, frozen_text=text) <= most


def test_frozen_stages_and_smaller_images_of_a_convolutional_network() -> None:
    config = _config(IMAGES["convnet"], TEXTS["cls"])
    assert _formula(config, frozen_image=1) == _counted(config, LockConfig(image=1)) < _formula(config)
    assert _formula(config, image_px=16) == _counted(config, image_px=16) < _formula(config)


def test_other_ranks_texts_are_compared_but_not_encoded() -> None:
    config = _config(VIT, TEXT)
    more = _formula(config, num_candidates=3 * len(LENGTHS)) - _formula(config)
    assert more == 3 * 2 * len(LENGTHS) * 2 * len(LENGTHS) * EMBED
    assert step_flops(config, num_images=5, text_lengths=torch.tensor(LENGTHS)) == _formula(config)


@pytest.mark.parametrize(
    ("name", "giga"), [("vit-b-32", 14.78), ("vit-b-16", 41.09), ("vit-l-14", 175.33), ("vit-h-14", 381.68)]
)
def test_nominal_operations_are_those_of_open_clips_tables(name: str, giga: float) -> None:
    assert nominal_flops(preset(name), num_images=2) / 2 / 3 / 1e9 == pytest.approx(giga, abs=0.006)
