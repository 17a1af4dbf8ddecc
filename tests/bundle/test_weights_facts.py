"""What a weights file cannot say is stated by the user, and otherwise recorded as an assumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.weights_facts import WeightsFacts
from diptych.core.errors import BundleError, ConfigError
from diptych.models.config import ViTConfig
from tests import peers
from tests.parity.models import IDS, LENGTHS, open_clip_model, random_pictures, shaken

VISION = {"image_size": 48, "patch_size": 16, "width": 96, "layers": 2, "head_width": 24}
TEXT = {"width": 64, "heads": 4, "layers": 2, "vocab_size": 49408}


def _model(vision: dict[str, Any], text: dict[str, Any]) -> Any:
    return shaken(peers.open_clip.model.CustomTextCLIP(64, {**VISION, **vision}, {**TEXT, **text}, quick_gelu=True))


STATED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "heads": ({}, {}, {}),
    "mean": ({"pool_type": "avg", "final_ln_after_pool": True}, {}, {"pooling": ("mean",)}),
    "no causal mask": ({}, {"no_causal_mask": True}, {"is_causal": False}),
    "last": ({}, {"no_causal_mask": True, "pool_type": "last"}, {"is_causal": False, "pooling": ("last",)}),
    "both": (
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"no_causal_mask": True, "pool_type": "first", "proj_bias": True},
        {"is_causal": False, "pooling": ("mean", "first")},
    ),
    "coca": (
        {"attentional_pool": True, "attn_pooler_heads": 2},
        {"embed_cls": True, "context_length": 76},
        {"heads": (4, 4, 2)},
    ),
}


@pytest.mark.parametrize("name", STATED)
def test_stated_facts_give_the_peers_features(tmp_path: Path, name: str) -> None:
    vision, text, facts = STATED[name]
    theirs = _model(vision, text)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    ours = open_bundle(
        tmp_path / "w.pt", facts=WeightsFacts(activation="quick_gelu", **{"heads": (4, 4), **facts})
    ).model
    pixels = random_pictures(ours)
    ids, lengths = (IDS[:4, :76], LENGTHS[:4]) if name == "coca" else (IDS, LENGTHS)
    with torch.no_grad():
        out = ours(pixels, ids, lengths)
        expected = theirs.encode_image(pixels, normalize=True), theirs.encode_text(ids, normalize=True)
    torch.testing.assert_close(out.image_emb, expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text_emb, expected[1], atol=1e-5, rtol=0)


def test_assumptions_are_recorded(tmp_path: Path) -> None:
    torch.save(open_clip_model({**VISION, "head_width": 48}).state_dict(), tmp_path / "w.pt")
    facts: dict[str, Any] = {"activation": "quick_gelu"}
    with pytest.raises(
        BundleError, match="width 96 is not a multiple of 64, so the heads cannot be inferred; add --heads"
    ):
        open_bundle(tmp_path / "w.pt", facts=WeightsFacts(**facts))
    assumed = open_bundle(tmp_path / "w.pt", facts=WeightsFacts(**facts, heads=(2, 1))).origin["assumed"]
    assert "a causal mask" in assumed
    assert "class token" in assumed
    assert "heads" not in assumed
    stated = open_bundle(
        tmp_path / "w.pt", facts=WeightsFacts(**facts, heads=(2, 1), pooling=("cls", "eot"), is_causal=True)
    )
    assert "mask" not in stated.origin["assumed"]
    assert "class token" not in stated.origin["assumed"]
    assert isinstance(stated.config.image, ViTConfig)
    assert stated.config.image.heads == 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"heads": (12,)}, "heads is 12; give one number for the image tower and one for the text tower"),
        ({"heads": (5, 1)}, "width 96 is not a multiple of heads 5"),
        ({"pooling": ("men",)}, "unknown pooling 'men'; did you mean 'mean'"),
        ({"pooling": ("cls", "mean")}, "pooling is cls,mean; give at most one per tower"),
        ({"pooling": ("last",)}, "pooling is last, which needs a text tower without a causal mask"),
        (
            {"preset": "vit-b-32", "heads": (12, 8)},
            "a preset contains the architecture, so heads cannot be set with it",
        ),
    ],
)
def test_facts_that_do_not_fit(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    torch.save(open_clip_model({**VISION, "head_width": 48}).state_dict(), tmp_path / "w.pt")
    with pytest.raises((BundleError, ConfigError), match=message) as caught:
        open_bundle(tmp_path / "w.pt", facts=WeightsFacts(**{"activation": "quick_gelu", **facts}))
    assert "\n" not in str(caught.value)


def test_facts_are_for_files(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="--weights is only for weights files in OpenAI's naming"):
        open_bundle(tiny_bundle, facts=WeightsFacts(weights="ema"))
    with pytest.raises(ConfigError, match="--no-causal is only for weights files"):
        open_bundle(tiny_bundle, facts=WeightsFacts(is_causal=False))


def test_a_file_with_a_tower_of_timm_needs_its_folder(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {"visual.trunk.norm.weight": torch.zeros(2)}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(BundleError, match=r"has a timm image tower, .*a folder with open_clip_config\.json"):
        open_bundle(tmp_path / "w.pt", facts=WeightsFacts(activation="gelu"))
