"""Weights from the peers give the peers' features and gradients. Shapes: B pictures and texts, E embedding."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diptych.bundle.hugging_face import hugging_face_names
from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.open_clip_config import open_clip_config
from diptych.bundle.openai import openai_names
from diptych.bundle.renaming import to_theirs
from diptych.bundle.weights_facts import WeightsFacts
from diptych.models.config import ViTConfig
from diptych.presets import PRESETS
from tests import peers
from tests.parity.models import (
    RESNET,
    VIT,
    assert_parity,
    encode_hugging_face,
    encode_open_clip,
    hugging_face_model,
    open_clip_model,
    pixels,
    random_pictures,
    save_hugging_face,
)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_vit_in_openais_naming(tmp_path: Path, suffix: str, quick_gelu: bool) -> None:
    theirs = open_clip_model(VIT, quick_gelu=quick_gelu)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(dict(theirs.state_dict()), path)
    else:
        torch.save(theirs.state_dict(), path)
    bundle = open_bundle(path, facts=WeightsFacts(activation="quick_gelu" if quick_gelu else "gelu"))
    assert_parity(bundle.model, theirs, encode_open_clip, openai_names(bundle.config))


def test_a_resnet_in_openais_naming(tmp_path: Path) -> None:
    theirs = open_clip_model(RESNET)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pt")
    bundle = open_bundle(tmp_path / "resnet.pt", facts=WeightsFacts(activation="quick_gelu"))
    assert_parity(bundle.model, theirs, encode_open_clip, openai_names(bundle.config))


def test_a_resnet_follows_its_batches_as_the_peers_does(tmp_path: Path) -> None:
    theirs = open_clip_model(RESNET)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pt")
    ours = open_bundle(tmp_path / "resnet.pt", facts=WeightsFacts(activation="quick_gelu")).model.train()
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
    assert bundle.config.own_text.activation == activation

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
    assert open_clip_config({"model_cfg": config}) == PRESETS[PRESETS_THERE[name] + quick_gelu]


def test_position_embeddings_are_resized_as_open_clip_does(tmp_path: Path) -> None:
    small, large = open_clip_model(VIT), open_clip_model({**VIT, "image_size": [80, 64]})
    weights = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    torch.save(weights, tmp_path / "small.pt")
    ours = open_bundle(tmp_path / "small.pt", image_px=(80, 64), facts=WeightsFacts(activation="quick_gelu")).model
    peers.open_clip.model.resize_pos_embed(weights, large)
    large.load_state_dict(weights)
    torch.testing.assert_close(
        ours.encode_image(random_pictures(ours)), large.encode_image(pixels(large), normalize=True), atol=1e-5, rtol=0
    )
