from collections import Counter

import pytest
import torch

from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.models.depth import LayerLocation, locate_parameter, num_layers_of
from diptych.models.modified_resnet import BatchNorm

TEXT = TextConfig(vocab_size=300, context_length=8, width=16, layers=3, heads=2)
VIT = ViTConfig(image_px=32, patch_px=16, width=16, layers=2, heads=2)
MODELS = {
    "patch": CLIPConfig(embed_dim=16, image=VIT, text=TEXT),
    "conv": CLIPConfig(
        embed_dim=16, image=ViTConfig(image_px=32, patch_px=16, stem="conv", width=16, layers=2, heads=2), text=TEXT
    ),
    "siglip": CLIPConfig(
        embed_dim=16,
        image=ViTConfig(image_px=32, patch_px=16, width=16, layers=2, heads=2, layout="siglip", pooling="attention"),
        text=TextConfig(vocab_size=300, context_length=8, width=16, layers=3, heads=2, layout="siglip"),
        init_logit_bias=-10.0,
    ),
    "resnet": CLIPConfig(
        embed_dim=16, image=ResNetConfig(image_px=32, layers=(1, 2, 1, 1), width=4, heads=4), text=TEXT
    ),
}


def _model(name: str) -> CLIP:
    with torch.device("meta"):
        return CLIP(MODELS[name])


@pytest.mark.parametrize("name", list(MODELS))
def test_every_weight_has_the_depth_at_which_it_acts(name: str) -> None:
    """Parameters are registered in the order in which they act, positions and tokens aside; the depth never falls."""
    model = _model(name)
    places = {key: locate_parameter(key, model.config) for key in model.state_dict()}
    assert {key for key, place in places.items() if place is None} == {
        key for key in model.state_dict() if not key.startswith(("image_tower.", "text_tower."))
    }
    for tower, num_layers in (("image", 4 if name == "resnet" else 2), ("text", 3)):
        depths = [
            place.depth for key, place in places.items() if place is not None and key.startswith(f"{tower}_tower")
        ]
        assert depths == sorted(depths)
        assert set(depths) == set(range(num_layers + 2))
        assert {place.num_layers for place in places.values() if place is not None and place.tower == tower} == {
            num_layers
        }


@pytest.mark.parametrize(
    ("name", "key", "place"),
    [
        ("patch", "image_tower.stem.embed.weight", LayerLocation("image", 0, 2)),
        ("conv", "image_tower.stem.layers.9.weight", LayerLocation("image", 0, 2)),
        ("patch", "image_tower.class_emb", LayerLocation("image", 0, 2)),
        ("patch", "image_tower.norm_pre.bias", LayerLocation("image", 0, 2)),
        ("patch", "image_tower.transformer.blocks.0.norm_1.weight", LayerLocation("image", 1, 2)),
        ("patch", "image_tower.transformer.blocks.1.mlp.0.weight", LayerLocation("image", 2, 2)),
        ("patch", "image_tower.norm_post.weight", LayerLocation("image", 3, 2)),
        ("siglip", "image_tower.pool.mlp.2.weight", LayerLocation("image", 3, 2)),
        ("siglip", "text_tower.projection.bias", LayerLocation("text", 4, 3)),
        ("patch", "text_tower.token_emb.weight", LayerLocation("text", 0, 3)),
        ("patch", "text_tower.position_emb", LayerLocation("text", 0, 3)),
        ("resnet", "image_tower.norm_3.running_mean", LayerLocation("image", 0, 4)),
        ("resnet", "image_tower.stages.0.0.conv_1.weight", LayerLocation("image", 1, 4)),
        ("resnet", "image_tower.stages.1.1.norm_3.weight", LayerLocation("image", 2, 4)),
        ("resnet", "image_tower.stages.3.0.shortcut.0.weight", LayerLocation("image", 4, 4)),
        ("resnet", "image_tower.pool.position_emb", LayerLocation("image", 5, 4)),
        ("siglip", "logit_bias", None),
    ],
)
def test_places(name: str, key: str, place: LayerLocation | None) -> None:
    model = _model(name)
    assert key in model.state_dict()
    assert locate_parameter(key, model.config) == place
    if place is not None:
        assert place.from_output == place.num_layers + 1 - place.depth
        assert place.is_in_layer == ("blocks" in key or "stages" in key)
        assert num_layers_of(place.tower, model.config) == place.num_layers


def test_modules_have_places_too() -> None:
    model = _model("resnet")
    norms = [key for key, module in model.named_modules() if isinstance(module, BatchNorm)]
    places = Counter(place.depth for key in norms if (place := locate_parameter(key, model.config)) is not None)
    assert places == {0: 3, 1: 4, 2: 7, 3: 4, 4: 4}  # Each stage's first block has a norm on its shortcut.
