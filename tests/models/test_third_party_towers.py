"""Towers of timm and transformers. Shapes: B batch, T tokens, E embedding."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.core.errors import ConfigError
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, TimmConfig, TransformersConfig, ViTConfig
from diptych.models.depth import locate_parameter, num_layers_of
from diptych.models.flops import nominal_flops, step_flops
from diptych.models.packing import packing_spec
from diptych.models.resolution import at_resolution
from diptych.models.size import model_size
from diptych.training.optim.freeze import LockConfig, apply_freeze, set_training_mode
from tests import peers
from tests.makers import ENCODER_TOWERS, TIMM_TOWERS, encoder_tower, randomized, timm_tower

LENGTHS = torch.tensor([4, 9, 2])
VIT = ViTConfig(image_px=32, patch_px=16, width=16, layers=1, heads=2)
TEXT = TextConfig(vocab_size=60, context_length=9, width=16, layers=1, heads=2)


def _ids(pad: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (3, 9), generator=generator)
    return torch.where(torch.arange(9) < LENGTHS[:, None], ids, pad)


def _pixels(config: TimmConfig) -> torch.Tensor:
    return torch.randn(3, 3, *height_width(config.image_px), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(TIMM_TOWERS))
def test_an_image_tower_has_the_features_of_timm(name: str) -> None:
    """The same embeddings from weights alone: buffers that no file contains are computed again."""
    image = TIMM_TOWERS[name]
    model = randomized(CLIPConfig(embed_dim=16, image=image, text=TEXT))
    pixels = _pixels(image)
    size = {"img_size": height_width(image.image_px)} if "vit" in name or "swin" in name else {}
    peer = peers.timm.create_model(image.name, num_classes=0, **size, **image.options).eval()
    weights = model.state_dict()
    prefix = "image_tower.model."
    peer.load_state_dict({n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)})
    with torch.no_grad():
        expected = model.image_tower.get_submodule("projection")(peer(pixels))
        torch.testing.assert_close(model.image_tower(pixels), expected, atol=1e-6, rtol=1e-5)
        loaded = CLIP.from_weights(model.config, weights)
        torch.testing.assert_close(loaded.encode_image(pixels), model.encode_image(pixels), atol=0, rtol=0)


@pytest.mark.parametrize("name", list(ENCODER_TOWERS))
def test_a_text_tower_has_the_features_of_transformers(name: str) -> None:
    """Padding is hidden by the mask and does not change an embedding, whatever it contains and however texts are passed."""
    text = ENCODER_TOWERS[name]
    model = randomized(CLIPConfig(embed_dim=16, image=VIT, text=text))
    pad = text.config["pad_token_id"]
    ids, mask = _ids(pad), torch.arange(9) < LENGTHS[:, None]
    tower: Any = model.text_tower
    with torch.no_grad():
        out = tower.model(input_ids=ids, attention_mask=mask.long())
        hidden = out.last_hidden_state
        pooled = {
            "mean": (hidden * mask[:, :, None]).sum(dim=1) / LENGTHS[:, None],
            "cls": hidden[:, 0],
            "last": hidden[torch.arange(3), LENGTHS - 1],
            "pooler": getattr(out, "pooler_output", None),
        }[text.pooling]
        expected = tower.projection(pooled)
        for given in (ids, ids.masked_fill(~mask, 7), torch.cat([ids[i, :n] for i, n in enumerate(LENGTHS.tolist())])):
            torch.testing.assert_close(tower(given, LENGTHS), expected, atol=1e-6, rtol=1e-5)
        alone = torch.cat([tower(ids[i : i + 1, :n], LENGTHS[i : i + 1]) for i, n in enumerate(LENGTHS.tolist())])
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-4)
        loaded = CLIP.from_weights(model.config, model.state_dict())
        torch.testing.assert_close(loaded.text_tower(ids, LENGTHS), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_no_weight_of_a_text_tower_is_unused(pooling: Any) -> None:
    tower = CLIP(CLIPConfig(embed_dim=16, image=VIT, text=encoder_tower("bert", pooling=pooling))).text_tower
    tower(_ids(), LENGTHS).sum().backward()
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


def test_an_encoder_decoder_contributes_its_encoder() -> None:
    architecture = {
        "model_type": "m2m_100",
        "d_model": 16,
        "vocab_size": 60,
        "max_position_embeddings": 20,
        "pad_token_id": 1,
    }
    sizes = {
        f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 16))
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    text = TransformersConfig(
        name="m2m_100", config={**architecture, **sizes, **heads}, pooling="cls", context_length=9, vocab_size=60
    )
    model = randomized(CLIPConfig(embed_dim=16, image=VIT, text=text))
    assert not any("decoder" in name for name in model.state_dict())
    loaded = CLIP.from_weights(model.config, model.state_dict())
    torch.testing.assert_close(
        loaded.encode_text(_ids(1), LENGTHS), model.encode_text(_ids(1), LENGTHS), atol=0, rtol=0
    )


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("projection", ["linear", "mlp", "none"])
def test_every_projection_gives_unit_embeddings(kind: str, projection: Any) -> None:
    image: Any = timm_tower("vit_tiny_patch16_224", 32, options=TIMM_TOWERS["timm vit"].options, projection=projection)
    text = encoder_tower("bert", projection=projection)
    model = CLIP(CLIPConfig(embed_dim=16, image=image, text=text)).eval()
    emb = model.encode_image(_pixels(image)) if kind == "image" else model.encode_text(_ids(), LENGTHS)
    torch.testing.assert_close(emb.norm(dim=1), torch.ones(3), atol=1e-5, rtol=0)


def test_timms_own_classifier_can_be_the_projection() -> None:
    image = replace(TIMM_TOWERS["timm convnext"], projection="classifier")
    model = randomized(CLIPConfig(embed_dim=24, image=image, text=TEXT))
    assert model.image_tower.get_parameter("model.head.fc.weight").shape == (24, 16)
    assert model.image_tower(_pixels(image)).shape == (3, 24)


@pytest.mark.parametrize(
    ("name", "text"),
    [("timm vit", "bert, mean"), ("timm efficientnet-lite", "modernbert, cls"), ("timm swin", "xlm-roberta, last")],
)
def test_half_precision_stays_close(name: str, text: str) -> None:
    config = CLIPConfig(embed_dim=16, image=TIMM_TOWERS[name], text=ENCODER_TOWERS[text])
    model = CLIP(config).eval()
    inputs = _pixels(TIMM_TOWERS[name]), _ids(), LENGTHS
    with torch.no_grad():
        whole, half = model(*inputs), CLIP.from_weights(config, model.state_dict()).convert(torch.bfloat16)(*inputs)
    for mine, other in ((whole.image_emb, half.image_emb), (whole.text_emb, half.text_emb)):
        assert other.dtype == torch.float32
        assert (mine * other).sum(dim=1).min() > 0.999


def test_gradients_with_checkpointing_equal_those_without() -> None:
    config = CLIPConfig(embed_dim=16, image=TIMM_TOWERS["timm vit"], text=ENCODER_TOWERS["modernbert, cls"])
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = CLIP(config).train()
        model.set_gradient_checkpointing(enabled)
        assert model.gradient_checkpointing is enabled
        out = model(_pixels(TIMM_TOWERS["timm vit"]), _ids(), LENGTHS)
        (out.image_emb[0] * torch.arange(16.0)).sum().add((out.text_emb[0] * torch.arange(16.0)).sum()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if "tower" in name})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert grad is not None
        torch.testing.assert_close(found[1][name], grad, atol=1e-5 * float(grad.abs().max()), rtol=1e-5)


def test_a_tower_with_batch_norms_has_no_gradient_checkpointing() -> None:
    model = CLIP(CLIPConfig(embed_dim=16, image=TIMM_TOWERS["timm efficientnet-lite"], text=TEXT))
    with pytest.raises(
        ConfigError, match=r"needs an image tower without batch norms, and tf_efficientnet_lite0 has batch norms"
    ):
        model.set_gradient_checkpointing()


def test_layers_of_both_towers_are_found_by_their_names() -> None:
    config = CLIPConfig(embed_dim=16, image=TIMM_TOWERS["timm vit"], text=ENCODER_TOWERS["bert, pooler"])
    places = {
        "image_tower.model.pos_embed": 0,
        "image_tower.model.patch_embed.proj.weight": 0,
        "image_tower.model.blocks.0.attn.qkv.weight": 1,
        "image_tower.model.blocks.1.mlp.fc2.bias": 2,
        "image_tower.model.norm.weight": 2,
        "image_tower.projection.weight": 3,
        "text_tower.model.embeddings.word_embeddings.weight": 0,
        "text_tower.model.embeddings.LayerNorm.bias": 0,
        "text_tower.model.encoder.layer.0.attention.self.query.weight": 1,
        "text_tower.model.encoder.layer.1.output.dense.weight": 2,
        "text_tower.model.pooler.dense.weight": 3,
        "text_tower.projection.hidden.weight": 3,
    }
    for name, depth in places.items():
        location = locate_parameter(name, config)
        assert location is not None
        assert (name, location.depth, location.num_layers) == (name, depth, 2)
    every = [name for name, _ in CLIP.without_memory(config).named_parameters() if "tower" in name]
    assert all(locate_parameter(name, config) is not None for name in every)


def test_frozen_layers_keep_their_weights_and_statistics() -> None:
    image = TIMM_TOWERS["timm efficientnet-lite"]
    config = CLIPConfig(embed_dim=16, image=image, text=ENCODER_TOWERS["bert, mean"])
    model = CLIP(config)
    apply_freeze(model, LockConfig(image=num_layers_of("image", config), text=1))
    set_training_mode(model, LockConfig(image=num_layers_of("image", config), text=1))
    before = {name: tensor.clone() for name, tensor in model.image_tower.get_submodule("model").state_dict().items()}
    out = model(_pixels(image), _ids(), LENGTHS)
    (out.image_emb.sum() + out.text_emb.sum()).backward()
    after = model.image_tower.get_submodule("model").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = {
        name.partition(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None
    }
    assert trained == {"image_tower.projection", "text_tower.model", "text_tower.projection"}
    assert model.text_tower.get_parameter("model.encoder.layer.0.output.dense.weight").grad is None
    assert model.text_tower.get_parameter("model.encoder.layer.1.output.dense.weight").grad is not None


def test_a_convolutional_tower_reads_another_size_and_a_transformer_says_that_it_cannot() -> None:
    config = CLIPConfig(embed_dim=16, image=TIMM_TOWERS["timm convnext"], text=TEXT)
    other = at_resolution(randomized(config), 96)
    assert other.encode_image(torch.randn(2, 3, 96, 96)).shape == (2, 16)
    with pytest.raises(ConfigError, match=r"has position embeddings for .* px and does not support 48 px"):
        at_resolution(randomized(replace(config, image=TIMM_TOWERS["timm vit"])), 48)


def test_size_and_operations_are_those_of_the_modules() -> None:
    config = CLIPConfig(embed_dim=16, image=TIMM_TOWERS["timm convnext"], text=ENCODER_TOWERS["bert, mean"])
    model, size = CLIP(config).eval(), model_size(config)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.image_tower(_pixels(TIMM_TOWERS["timm convnext"])[:1])
    assert size.image_multiply_adds == counted.get_total_flops() // 2
    forward = 2 * (size.image_multiply_adds + size.text_multiply_adds)
    assert nominal_flops(config, num_images=2) == 2 * 3 * forward
    inference = step_flops(
        config, num_images=1, text_lengths=[9], num_candidates=0, frozen_image="all", frozen_text="all"
    )
    assert inference == forward
    training = step_flops(config, num_images=1, text_lengths=[9], num_candidates=0)
    assert 2.5 * forward < training <= 3 * forward


def test_no_data_worker_packs_texts_for_an_encoder() -> None:
    assert packing_spec(ENCODER_TOWERS["bert, mean"], torch.device("cuda"), micro_batch=None) is None


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (timm_tower("convnext_atot", 32), TEXT, "unknown timm model 'convnext_atot'; did you mean 'convnext_atto'"),
        (timm_tower("vit_tiny_patch16_224.laion", 224), TEXT, "unknown timm weights 'vit_tiny_patch16_224.laion'"),
        (timm_tower("convnext_atto", 64, pooling=""), TEXT, "not one vector per image, but 1x320x2x2; set pooling to"),
        (timm_tower("convnext_atto", 64, options={"dpeths": 1}), TEXT, "timm cannot build convnext_atto .*dpeths"),
        (
            timm_tower("convnext_atto", 64, projection="none"),
            TEXT,
            "model.embed_dim must be the 320 features .*; it is 16",
        ),
        (timm_tower("vit_tiny_patch16_224", 8), TEXT, "vit_tiny_patch16_224"),
        (TimmConfig(name="convnext_atto"), TEXT, "image_px is 0; a model is built from a resolved config"),
        (VIT, encoder_tower("brt"), "unknown transformers architecture 'brt'; did you mean 'bert'"),
        (VIT, encoder_tower("vit"), "needs input other than token ids"),
        (VIT, encoder_tower("bert", projection="none"), None),
        (
            VIT,
            replace(encoder_tower("bert"), projection="none", config={"model_type": "bert"}),
            "the 768 features of bert; it is 16",
        ),
        (
            VIT,
            replace(encoder_tower("bert"), config={"model_type": "bert", "hidden_size": 30}),
            "transformers cannot build bert",
        ),
        (VIT, encoder_tower("modernbert", pooling="pooler"), "'pooler', but modernbert has no pooler"),
        (VIT, TransformersConfig(name="bert", config={"model_type": "bert"}), "pooling is 'auto'"),
    ],
)
def test_impossible_towers_are_refused_in_one_line(image: Any, text: Any, message: str | None) -> None:
    config = CLIPConfig(embed_dim=16, image=image, text=text)
    if message is None:
        CLIP(config)
        return
    with pytest.raises(ConfigError, match=message) as raised:
        CLIP(config)
    assert "\n" not in str(raised.value)
