"""open_clip's towers of timm and transformers, by a live open_clip with random weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.bundle.open_clip_towers import (
    timm_tower_config,
    timm_tower_names,
    transformers_tower_config,
    transformers_tower_names,
)
from diptych.bundle.renaming import from_theirs, same
from diptych.core.errors import ConfigError
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from tests import peers

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}
NLLB = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 64))}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**SIZES, "pad_token_id": 0},
    "xlm-roberta": {**SIZES, "pad_token_id": 1},
    "mt5": {
        **{"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
        **{"vocab_size": 60, "pad_token_id": 0, "dropout_rate": 0.0},
    },
    "m2m_100": {
        **NLLB,
        **{"d_model": 32, "vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 1, "dropout": 0.0},
        **{
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_layerdrop": 0.0,
            "attention_dropout": 0.0,
        },
    },
}
LENGTHS = torch.tensor([5, 12, 3])


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (("vit_tiny_patch16_224", "avg", "linear"), ("bert", "mean_pooler", "linear")),
        (("vit_tiny_patch16_224", "token", "mlp"), ("bert", "cls_pooler", "mlp")),
        (("vit_tiny_patch16_224", "token", "none"), ("xlm-roberta", "cls_last_hidden_state_pooler", "mlp")),
        (("convnext_atto", "", "linear"), ("mt5", "mean_pooler", "linear")),
        (("convnext_atto", "avg", "mlp"), ("m2m_100", "cls_pooler", "linear")),
        (("convnext_atto", "avg", None), ("xlm-roberta", "mean_pooler", "mlp")),
    ],
)
def test_features_and_gradients_are_open_clips(
    image: tuple[Any, ...], text: tuple[str, str, str], tmp_path: Path
) -> None:
    embed_dim = 192 if image[2] == "none" else 24
    vision = dict(zip(("timm_model_name", "timm_pool", "timm_proj"), image, strict=True)) | {"image_size": 224}
    architecture = {"model_type": text[0], **ENCODERS[text[0]]}
    (tmp_path / "config.json").write_text(json.dumps(architecture), "utf-8")
    encoder = dict(zip(("hf_pooler_type", "hf_proj_type"), text[1:], strict=True))
    encoder |= {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path)}
    torch.manual_seed(0)
    peer = peers.open_clip.model.CustomTextCLIP(
        embed_dim, vision, {**encoder, "hf_model_pretrained": False, "context_length": 12}
    ).eval()
    config = CLIPConfig(
        embed_dim=embed_dim,
        image=timm_tower_config(vision),
        text=transformers_tower_config({**encoder, "context_length": 12}, architecture, embed_dim=embed_dim),
    )
    table = [*timm_tower_names(config), *transformers_tower_names(config), same("log_logit_scale", "logit_scale")]
    model = CLIP.from_weights(config, from_theirs(peer.state_dict(), table, config, what="open_clip"))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 224, 224, generator=generator)
    ids = torch.randint(3, 60, (3, 12), generator=generator)
    ids = torch.where(torch.arange(12) < LENGTHS[:, None], ids, architecture["pad_token_id"])
    weight = torch.randn(embed_dim, generator=generator)
    (image_emb, text_emb, *_), theirs = model(pixels, ids, LENGTHS), peer(pixels, ids)
    torch.testing.assert_close(image_emb, theirs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(text_emb, theirs[1], atol=1e-5, rtol=0)
    for outputs in ((image_emb, text_emb), theirs):
        sum((outputs[i] @ weight).square().sum() for i in range(2)).backward()
    mine, other = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (model, peer))
    compared = {rename.theirs: mine[rename.ours[0]] for rename in table if rename.ours[0] in mine}
    assert len(compared) > 30
    for name, grad in compared.items():
        torch.testing.assert_close(grad, other[name], atol=1e-4 * max(1.0, float(other[name].abs().max())), rtol=1e-4)


def test_a_tower_with_timms_mean_pooling_has_its_norm_before_the_pooling() -> None:
    """open_clip changes the pooling after the model was built, which does not move the norm."""
    config = timm_tower_config({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg", "timm_proj": "linear"})
    assert (config.options, config.pooling) == ({"fc_norm": False}, "avg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timm_pool": "abs_attn"}, "timm_pool 'abs_attn', an attention pooling that Diptych does not support"),
        ({"timm_pool": "map"}, "timm_pool 'map', which convnext_atto does not support|other weights"),
        ({"timm_proj": "conv"}, "timm_proj 'conv'; known: linear, mlp, none, null"),
        ({"timm_model_name": "convnext_atot"}, "did you mean 'convnext_atto'"),
    ],
)
def test_image_towers_that_cannot_be_read_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timm_tower_config({"timm_model_name": "convnext_atto", "timm_pool": "avg", "timm_proj": "linear", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hf_pooler_type": "max_pooler"}, "hf_pooler_type 'max_pooler'; known: cls_pooler, mean_pooler"),
        ({"hf_proj_type": "conv"}, "hf_proj_type 'conv'"),
        ({"hf_proj_type": None}, "which cannot project 32 features to 24 dimensions"),
    ],
)
def test_text_towers_that_cannot_be_read_are_refused(changes: dict[str, Any], message: str) -> None:
    text = {"hf_model_name": "x", "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear", **changes}
    with pytest.raises(ConfigError, match=message):
        transformers_tower_config(text, {"model_type": "bert", **ENCODERS["bert"]}, embed_dim=24)


def test_a_text_tower_without_a_projection_has_the_width_of_the_embeddings() -> None:
    text = {"hf_model_name": "x", "hf_proj_type": None}
    config = transformers_tower_config(text, {"model_type": "bert", **ENCODERS["bert"]}, embed_dim=32)
    assert (config.projection, config.pooling, config.context_length) == ("none", "mean", 77)
    assert replace(config, context_length=12).vocab_size == 60
