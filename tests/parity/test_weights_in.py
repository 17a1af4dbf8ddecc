"""Weights from the peers give the peers' features and gradients. Shapes: B pictures and texts, E embedding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from diptych.bundle.hugging_face import hugging_face_names
from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.open_clip import _config
from diptych.bundle.openai import openai_names
from diptych.bundle.renaming import Rename, to_theirs
from diptych.losses.contrastive import clip_loss
from diptych.models.clip import CLIP
from diptych.models.config import ViTConfig
from diptych.presets import PRESETS
from tests import peers
from tests.parity.models import (
    IDS,
    LENGTHS,
    RESNET,
    VIT,
    hugging_face_model,
    open_clip_model,
    pixels,
    save_hugging_face,
)


def assert_parity(
    ours: CLIP,
    theirs: Any,
    encode: Callable[[Any], tuple[Tensor, Tensor]],
    table: list[Rename],
    *,
    min_spread: float = 0.01,
) -> None:
    """Features within 1e-5, loss the same, gradients within 1e-4 of each tensor's largest."""
    out = ours(_pictures(ours), IDS, LENGTHS)
    image_emb, text_emb = (functional.normalize(emb, dim=-1) for emb in encode(theirs))
    torch.testing.assert_close(out.image_emb, image_emb, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text_emb, text_emb, atol=1e-5, rtol=0)
    assert float(image_emb.detach().std(dim=0).max()) > min_spread  # The pictures do differ.
    our_loss = clip_loss(out.image_emb, out.text_emb, out.logit_scale)
    their_loss = clip_loss(image_emb, text_emb, theirs.logit_scale.exp())
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    our_loss.backward()
    their_loss.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    known = [rename for rename in table if all(name in gradients for name in rename.ours)]
    mine = to_theirs({name: grad for name, grad in gradients.items() if grad is not None}, known)
    checked = 0
    for name, parameter in theirs.named_parameters():
        # A key's bias has no gradient but rounding; open_clip keeps it with the others.
        if parameter.grad is None or name.endswith("k_proj.bias"):
            continue
        error = float((mine[name] - parameter.grad).abs().max())
        assert error <= 1e-4 * float(parameter.grad.abs().max()), name
        checked += 1
    assert checked >= len(known) - sum(rename.theirs.endswith("k_proj.bias") for rename in known)


def _pictures(model: CLIP) -> Tensor:
    side = model.config.image.image_px
    height, width = (side, side) if isinstance(side, int) else side
    return torch.randn(5, 3, height, width, generator=torch.Generator().manual_seed(2))


def encode_open_clip(model: Any) -> tuple[Tensor, Tensor]:
    """Embeddings of the random pictures and texts."""
    return model.encode_image(pixels(model)), model.encode_text(IDS)


def encode_hugging_face(model: Any) -> tuple[Tensor, Tensor]:
    """Embeddings of the random pictures and texts."""
    side = model.config.vision_config.image_size
    pictures = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(2))
    image, text = model.get_image_features(pixel_values=pictures), model.get_text_features(input_ids=IDS)
    return image.pooler_output, text.pooler_output


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_vit_in_openais_naming(tmp_path: Path, suffix: str, quick_gelu: bool) -> None:
    theirs = open_clip_model(VIT, quick_gelu=quick_gelu)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(dict(theirs.state_dict()), path)
    else:
        torch.save(theirs.state_dict(), path)
    bundle = open_bundle(path, activation="quick_gelu" if quick_gelu else "gelu")
    assert_parity(bundle.model, theirs, encode_open_clip, openai_names(bundle.config))


def test_a_resnet_in_openais_naming(tmp_path: Path) -> None:
    theirs = open_clip_model(RESNET)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pt")
    bundle = open_bundle(tmp_path / "resnet.pt", activation="quick_gelu")
    assert_parity(bundle.model, theirs, encode_open_clip, openai_names(bundle.config))


def test_a_resnet_follows_its_batches_as_the_peers_does(tmp_path: Path) -> None:
    theirs = open_clip_model(RESNET)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pt")
    ours = open_bundle(tmp_path / "resnet.pt", activation="quick_gelu").model.train()
    pictures = pixels(theirs)
    torch.testing.assert_close(ours.image_tower(pictures), theirs.train().encode_image(pictures), atol=1e-4, rtol=1e-4)
    table = openai_names(ours.config)
    mine = to_theirs(ours.state_dict(), table)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_hugging_face_folder(tmp_path: Path, activation: str) -> None:
    theirs = hugging_face_model(activation)
    bundle = open_bundle(save_hugging_face(theirs, tmp_path / "hf"))
    assert isinstance(bundle.config.image, ViTConfig)
    assert bundle.config.image.heads == 5
    assert bundle.config.text.activation == activation

    assert_parity(bundle.model, theirs, encode_hugging_face, hugging_face_names(bundle.config))


PRESETS_THERE = {
    "ViT-B-32": "vit-b-32",
    "ViT-B-16": "vit-b-16",
    "ViT-L-14": "vit-l-14",
    "ViT-L-14-336": "vit-l-14-336",
    "ViT-H-14": "vit-h-14",
    **{f"RN{name}": f"rn{name}" for name in ("50", "101", "50x4", "50x16", "50x64")},
}


@pytest.mark.parametrize("quick_gelu", ["", "-quickgelu"])
@pytest.mark.parametrize("name", list(PRESETS_THERE))
def test_a_preset_is_what_the_peer_calls_so(name: str, quick_gelu: str) -> None:
    config = peers.open_clip.get_model_config(name + quick_gelu)
    assert _config(config, {}) == PRESETS[PRESETS_THERE[name] + quick_gelu]


def test_position_embeddings_are_resized_as_open_clip_does(tmp_path: Path) -> None:
    small, large = open_clip_model(VIT), open_clip_model({**VIT, "image_size": [80, 64]})
    weights = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    torch.save(weights, tmp_path / "small.pt")
    ours = open_bundle(tmp_path / "small.pt", activation="quick_gelu", image_px=(80, 64)).model
    peers.open_clip.model.resize_pos_embed(weights, large)
    large.load_state_dict(weights)
    torch.testing.assert_close(
        ours.encode_image(_pictures(ours)), large.encode_image(pixels(large), normalize=True), atol=1e-5, rtol=0
    )
