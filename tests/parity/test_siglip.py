"""SigLIP's layout is the peer's: attention pooling, filled text, biases, and its logits."""

import torch
from torch import Tensor
from torch.nn import functional

from diptych.bundle.renaming import Rename, norm, same, shaped, stacked, to_theirs
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from tests import peers
from tests.parity.models import shaken

CONFIG = CLIPConfig(
    embed_dim=48,
    image=ViTConfig(
        image_px=32,
        patch_px=8,
        width=48,
        layers=2,
        heads=3,
        pooling="attention",
        layout="siglip",
        activation="gelu_tanh",
    ),
    text=TextConfig(
        vocab_size=90,
        context_length=12,
        width=48,
        layers=2,
        heads=3,
        is_causal=False,
        layout="siglip",
        activation="gelu_tanh",
    ),
    init_logit_bias=-10.0,
)


def _peer() -> torch.nn.Module:
    tower = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = {**tower, "vocab_size": 90, "max_position_embeddings": 12, "projection_size": 48}
    config = peers.transformers.SiglipConfig(
        text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8}
    )
    model: torch.nn.Module = shaken(peers.transformers.SiglipModel(config))
    return model


def _names() -> list[Rename]:
    vision, text, pool = "vision_model.embeddings", "text_model.embeddings", "vision_model.head"
    query_key_value = [f"image_tower.pool.attention.{name}" for name in ("query", "key", "value")]
    return [
        shaped("image_tower.stem.embed.weight", f"{vision}.patch_embedding.weight", (3, 8, 8)),
        same("image_tower.stem.embed.bias", f"{vision}.patch_embedding.bias"),
        same("image_tower.position_emb", f"{vision}.position_embedding.weight"),
        *_blocks("image_tower", "vision_model"),
        *norm("image_tower.norm_post", "vision_model.post_layernorm"),
        Rename(("image_tower.pool.query",), f"{pool}.probe", lambda p: p[0].view(1, 1, -1), lambda w: [w.flatten()]),
        *(
            stacked([f"{n}.{part}" for n in query_key_value], f"{pool}.attention.in_proj_{part}")
            for part in ("weight", "bias")
        ),
        *norm("image_tower.pool.attention.out", f"{pool}.attention.out_proj"),
        *norm("image_tower.pool.norm", f"{pool}.layernorm"),
        *norm("image_tower.pool.mlp.0", f"{pool}.mlp.fc1"),
        *norm("image_tower.pool.mlp.2", f"{pool}.mlp.fc2"),
        same("text_tower.token_emb.weight", f"{text}.token_embedding.weight"),
        same("text_tower.position_emb", f"{text}.position_embedding.weight"),
        *_blocks("text_tower", "text_model"),
        *norm("text_tower.norm_post", "text_model.final_layer_norm"),
        *norm("text_tower.projection", "text_model.head"),
        Rename(("log_logit_scale",), "logit_scale", lambda p: p[0].view(1), lambda w: [w[0]]),
        Rename(("logit_bias",), "logit_bias", lambda p: p[0].view(1), lambda w: [w[0]]),
    ]


def _blocks(ours: str, theirs: str) -> list[Rename]:
    pairs = {
        **{"norm_1": "layer_norm1", "norm_2": "layer_norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"},
        **{f"attention.{mine}": f"self_attn.{mine[0]}_proj" for mine in ("query", "key", "value")},
        "attention.out": "self_attn.out_proj",
    }
    return [
        rename
        for i in range(2)
        for mine, other in pairs.items()
        for rename in norm(f"{ours}.transformer.blocks.{i}.{mine}", f"{theirs}.encoder.layers.{i}.{other}")
    ]


def test_siglip_is_the_peers() -> None:
    theirs, table = _peer(), _names()
    weights: dict[str, Tensor] = {}
    for rename in table:
        weights |= dict(zip(rename.ours, rename.take(theirs.state_dict()[rename.theirs]), strict=True))
    assert {rename.theirs for rename in table} == theirs.state_dict().keys()
    ours = CLIP.from_weights(CONFIG, {name: tensor.clone() for name, tensor in weights.items()})
    pixels = torch.randn(3, 3, 32, 32)
    lengths = torch.tensor([5, 12, 2])
    ids = torch.randint(1, 90, (3, 12))
    ids[torch.arange(12)[None, :] >= lengths[:, None]] = 0  # Filled with id 0, which both attend to.
    out = ours(pixels, ids, lengths)
    expected = theirs(pixel_values=pixels, input_ids=ids)
    torch.testing.assert_close(out.image_emb, expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text_emb, expected.text_embeds, atol=1e-5, rtol=0)
    assert out.logit_bias is not None
    logits = out.logit_scale * out.text_emb @ out.image_emb.T + out.logit_bias
    torch.testing.assert_close(logits, expected.logits_per_text, atol=1e-4, rtol=0)
    logits.square().sum().backward()
    expected.logits_per_text.square().sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    mine = to_theirs(gradients, table)
    for name, parameter in theirs.named_parameters():
        if not name.endswith("k_proj.bias"):
            assert parameter.grad is not None
            error = float((mine[name] - parameter.grad).abs().max())
            assert error <= 1e-4 * float(parameter.grad.abs().max()), name
    assert functional.cosine_similarity(out.image_emb[:1], out.image_emb[1:2]).item() < 0.9999
