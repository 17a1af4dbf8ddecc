"""SigLIP's layout is the peer's: attention pooling, filled text, biases, its logits and its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diptych.bundle.renaming import to_theirs
from diptych.bundle.siglip_names import hugging_face_siglip_names
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from tests import peers
from tests.parity.models import shaken

SIGLIP: dict[str, Any] = {"layers": 2, "layout": "siglip", "activation": "gelu_tanh"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"image_px": 32, "patch_px": 8, "width": 48, "heads": 3}, {"width": 48, "heads": 3}),
    "pixels that no patch covers": (
        {"image_px": 30, "patch_px": 7, "width": 48, "heads": 3},
        {"width": 48, "heads": 3},
    ),
    "a wider image tower": ({"image_px": 32, "patch_px": 16, "width": 80, "heads": 5}, {"width": 24, "heads": 2}),
    "another epsilon": (
        {"image_px": 24, "patch_px": 8, "width": 48, "heads": 3, "norm_eps": 1e-4},
        {"width": 36, "heads": 3, "norm_eps": 1e-3},
    ),
}


def _config(image: dict[str, Any], text: dict[str, Any]) -> CLIPConfig:
    """Of odd hidden widths."""
    return CLIPConfig(
        embed_dim=image["width"],
        image=ViTConfig(pooling="attention", mlp_ratio=101 / image["width"], **SIGLIP, **image),
        text=TextConfig(vocab_size=90, context_length=12, is_causal=False, mlp_ratio=3.0, **SIGLIP, **text),
        init_logit_bias=-10.0,
    )


def _peer(image: dict[str, Any], text: dict[str, Any]) -> torch.nn.Module:
    vision = {"image_size": image["image_px"], "patch_size": image["patch_px"], "intermediate_size": 101}
    words = {"vocab_size": 90, "max_position_embeddings": 12, "projection_size": image["width"]}
    towers = [
        {
            "hidden_size": tower["width"],
            "num_hidden_layers": 2,
            "num_attention_heads": tower["heads"],
            "layer_norm_eps": tower.get("norm_eps", 1e-6),
        }
        for tower in (image, text)
    ]
    config = peers.transformers.SiglipConfig(
        vision_config={**towers[0], **vision},
        text_config={**towers[1], **words, "intermediate_size": 3 * text["width"]},
    )
    model: torch.nn.Module = shaken(peers.transformers.SiglipModel(config))
    return model


@pytest.mark.parametrize("name", list(VARIANTS))
def test_siglip_is_the_peers(name: str) -> None:
    config, theirs = _config(*VARIANTS[name]), _peer(*VARIANTS[name])
    table = hugging_face_siglip_names(config)
    weights: dict[str, Tensor] = {}
    for rename in table:
        weights |= dict(zip(rename.ours, rename.take(theirs.state_dict()[rename.theirs]), strict=True))
    assert {rename.theirs for rename in table} == theirs.state_dict().keys()
    ours = CLIP.from_weights(config, {name: tensor.clone() for name, tensor in weights.items()})
    side = VARIANTS[name][0]["image_px"]
    pixels = torch.randn(3, 3, side, side)
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
    for key, parameter in theirs.named_parameters():
        if not key.endswith("k_proj.bias"):
            assert parameter.grad is not None
            error = float((mine[key] - parameter.grad).abs().max())
            assert error <= 1e-4 * float(parameter.grad.abs().max()), key
    assert functional.cosine_similarity(out.image_emb[:1], out.image_emb[1:2]).item() < 0.9999
