"""SigLIP's layout is the peer's: attention pooling, filled text, biases, and its logits."""

import torch
from torch import Tensor
from torch.nn import functional

from diptych.bundle.renaming import to_theirs
from diptych.bundle.siglip_names import hugging_face_siglip_names
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


def test_siglip_is_the_peers() -> None:
    theirs, table = _peer(), hugging_face_siglip_names(CONFIG)
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
