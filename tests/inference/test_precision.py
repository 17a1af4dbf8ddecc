"""Lower precisions: what they cost, and where they are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.bundle.folder import Bundle, require_bundle, save_bundle
from diptych.core.cpu import has_fast_int8
from diptych.core.errors import ConfigError
from diptych.data.open_source import open_source
from diptych.inference import load_model, loaded
from diptych.inference.loaded import LoadedBundle, load
from diptych.models.clip import CLIP
from diptych.models.int8 import Int8Linear
from diptych.presets import preset
from diptych.tokenizers.clip_bpe import ClipBPETokenizer

needs_int8 = pytest.mark.skipif(not has_fast_int8(), reason="this CPU has no VNNI instructions")


def test_a_linear_map_in_integers_is_the_map_but_for_rounding() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    x = torch.randn(2, 5, 64) * torch.logspace(-3, 3, 5)[None, :, None]  # Tokens of very different size.
    with torch.no_grad():
        out, expected = Int8Linear(linear)(x), linear(x)
    error = (out - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) < 0.02
    assert torch.equal(Int8Linear(linear)(torch.zeros(3, 64)), linear.bias.expand(3, -1))
    assert Int8Linear(torch.nn.Linear(64, 48, bias=False))(x).shape == (2, 5, 48)


@needs_int8
def test_int8_agrees_with_float32(tiny_bundle: Path, clip: LoadedBundle) -> None:
    source = open_source("shapes:40")
    images = [source[i].image for i in range(24)]
    integer = load(tiny_bundle, device="cpu", precision="int8")
    assert 0.999 < integer.min_cosine_to_fp32(images) < 1
    assert integer.identity == clip.identity
    assert any(isinstance(module, Int8Linear) for module in require_bundle(integer.bundle).model.image_tower.modules())
    texts = ["a red circle", "a large blue square on white"]
    assert np.einsum("ne,ne->n", integer.encode_texts(texts), clip.encode_texts(texts)).min() > 0.999


def test_sixteen_bits_agree_with_float32(
    tiny_bundle: Path, clip: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_model, "cpu_has", lambda *_: True)
    source = open_source("shapes:40")
    images = [source[i].image for i in range(8)]
    half = load(tiny_bundle, device="cpu", precision="bf16")
    assert 0.99 < half.min_cosine_to_fp32(images) < 1
    assert half.encode_images(images).dtype == np.float32
    assert half.identity == clip.identity


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp16"])
def test_what_the_cpu_lacks_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: loaded.InferencePrecision
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(ConfigError, match=f"{precision} on a CPU needs"):
        load(tiny_bundle, device="cpu", precision=precision)


@needs_int8
def test_int8_of_a_resnet_is_refused(tmp_path: Path) -> None:
    config = preset("cifar10-rn")
    tokenizer = ClipBPETokenizer(context_length=config.text.context_length)
    save_bundle(Bundle(model=CLIP(config), tokenizer=tokenizer), tmp_path / "b")
    with pytest.raises(ConfigError, match="this image tower is a ResNet"):
        load(tmp_path / "b", device="cpu", precision="int8")


def test_a_bundle_without_a_place_has_no_agreement(clip: LoadedBundle) -> None:
    with pytest.raises(ConfigError, match="has no path"):
        LoadedBundle(clip.bundle).min_cosine_to_fp32([])
