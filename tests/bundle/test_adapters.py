"""Adapters in PEFT's format are merged into their base model. The files are written as PEFT's documentation describes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.bundle.open_bundle import open_bundle
from diptych.core.errors import BundleError, ConfigError, DiptychWarning
from tests.parity.models import (
    IDS,
    LENGTHS,
    encode_hugging_face,
    hugging_face_model,
    random_pictures,
    save_hugging_face,
)

RANK = 3
LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


class _Adapted(nn.Module):
    """What PEFT makes of a linear layer."""

    def __init__(self, layer: nn.Linear, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.layer, self.down, self.up, self.scale = layer, down, up, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * (x @ self.down.T @ self.up.T)


def _config(base: str, **changes: Any) -> dict[str, Any]:
    return {
        **{"peft_type": "LORA", "base_model_name_or_path": base, "r": RANK, "lora_alpha": 6, "bias": "none"},
        **{"fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "target_modules": ["q_proj"], **changes},
    }


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {f"base_model.model.{name}": t.contiguous() for name, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def _adapt(model: Any, scale_of: Any) -> dict[str, Tensor]:
    """Adapt linear layers of both towers of the peer, and return the adapter's tensors."""
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for tower in ("vision_model", "text_model"):
        for suffix in LAYERS:
            name = f"{tower}.encoder.layers.1.{suffix}"
            layer = model.get_submodule(name)
            rank = RANK + 2 * (suffix == "mlp.fc2")
            down = torch.randn(rank, layer.in_features, generator=generator) * 0.1
            up = torch.randn(layer.out_features, rank, generator=generator) * 0.1
            tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _Adapted(layer, down, up, scale_of(suffix, rank)))
    return tensors


def _assert_same(folder: Path, theirs: Any) -> None:
    ours = open_bundle(folder).model
    with torch.no_grad():
        out = ours(random_pictures(ours), IDS, LENGTHS)
        image, text = (torch.nn.functional.normalize(emb, dim=-1) for emb in encode_hugging_face(theirs))
    torch.testing.assert_close(out.image_emb, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text_emb, text, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_stabilized", [False, True])
def test_a_merged_adapter_gives_the_adapted_models_features(tmp_path: Path, is_stabilized: bool) -> None:
    theirs = hugging_face_model()
    base = save_hugging_face(theirs, tmp_path / "base")

    def scale(suffix: str, rank: int) -> float:
        alpha = 9 if suffix == "mlp.fc1" else 6
        return float(alpha / (rank**0.5 if is_stabilized else rank))

    tensors = _adapt(theirs, scale)
    head = torch.randn_like(theirs.visual_projection.weight) * 0.1
    theirs.visual_projection.weight.data = head
    tensors["visual_projection.modules_to_save.weight"] = head
    config = _config(
        str(base),
        use_rslora=is_stabilized,
        rank_pattern={"mlp.fc2": RANK + 2},
        alpha_pattern={"mlp.fc1": 9},
        modules_to_save=["visual_projection"],
    )
    folder = _write(tmp_path / "adapter", config, tensors)
    _assert_same(folder, theirs)
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    bundle = open_bundle(folder)
    assert bundle.origin["format"] == "adapter in PEFT's format"
    assert (bundle.origin["base"], bundle.origin["license"]) == (str(base), "mit")
    assert bundle.identity != open_bundle(base).identity


def test_a_base_next_to_the_adapter(tmp_path: Path) -> None:
    theirs = hugging_face_model()
    tensors = _adapt(hugging_face_model(), lambda _suffix, _rank: 0.0)
    folder = _write(tmp_path / "adapter", _config("base", rank_pattern={"fc2": 5}, lora_alpha=0), tensors)
    save_hugging_face(theirs, folder / "base")
    _assert_same(folder, theirs)


def test_a_merged_model_has_the_license_of_its_base(tmp_path: Path) -> None:
    base = save_hugging_face(hugging_face_model(), tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    layer = "vision_model.encoder.layers.1.mlp.fc1"
    tensors = {f"{layer}.lora_A.weight": torch.zeros(RANK, 80), f"{layer}.lora_B.weight": torch.zeros(320, RANK)}
    folder = _write(tmp_path / "adapter", _config(str(base)), tensors)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.warns(DiptychWarning, match="cc-by-nc-4.0, does not allow commercial use"):
        assert open_bundle(folder).origin["license"] == "cc-by-nc-4.0"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "has use_dora True; Diptych does not support DoRA"),
    "ia3": ({"peft_type": "IA3"}, "peft_type is 'IA3'; Diptych supports LORA"),
    "fan in": ({"fan_in_fan_out": True}, "has fan_in_fan_out True"),
    "no base": ({"base_model_name_or_path": None}, "does not name the base model"),
    "missing base": (
        {"base_model_name_or_path": "/nowhere/base"},
        "the base model /nowhere/base does not exist; copy it",
    ),
    "itself": ({"base_model_name_or_path": "../adapter"}, "is an adapter itself; merge that one first"),
    "rank": ({"r": 7}, "expected rank 7"),
    "rank of a string": ({"r": "7"}, "r is '7' and lora_alpha 6"),
    "expression": ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern has the regular expression"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_adapters_that_are_refused(tmp_path: Path, name: str) -> None:
    changes, message = REFUSED[name]
    base = save_hugging_face(hugging_face_model(), tmp_path / "base")
    layer = "vision_model.encoder.layers.1.mlp.fc1"
    tensors = {f"{layer}.lora_A.weight": torch.zeros(RANK, 80), f"{layer}.lora_B.weight": torch.zeros(320, RANK)}
    folder = _write(tmp_path / "adapter", {**_config(str(base)), **changes}, tensors)
    with pytest.raises((BundleError, ConfigError), match=message.replace("(", r"\(")) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.lora_A.weight": torch.zeros(3, 2)}, "does not fit the base model: a is not a layer of the model"),
        ({"logit_scale.extra": torch.zeros(1)}, "the base model has no logit_scale.extra"),
        ({"visual_projection.weight": torch.zeros(2, 2)}, "visual_projection.weight is 2x2, expected 64x80"),
    ],
)
def test_adapters_that_do_not_fit(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    base = save_hugging_face(hugging_face_model(), tmp_path / "base")
    with pytest.raises(BundleError, match=message):
        open_bundle(_write(tmp_path / "adapter", _config(str(base)), tensors))


def test_an_adapter_without_its_weights(tmp_path: Path) -> None:
    folder = _write(tmp_path / "adapter", _config("x/y"), {"a": torch.zeros(1)})
    assert list(load_file(folder / "adapter_model.safetensors")) == ["base_model.model.a"]
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"holds no weights of the adapter \(adapter_model\.safetensors\)"):
        open_bundle(folder)


def test_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    theirs = hugging_face_model()
    save_hugging_face(theirs, tmp_path / "st" / "0_CLIPModel")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "st" / "modules.json").write_text(json.dumps(modules))
    _assert_same(tmp_path / "st", theirs)
    modules.append({"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "st" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BundleError, match="has the modules CLIPModel, Dense; Diptych supports only a single CLIPModel"):
        open_bundle(tmp_path / "st")
    (tmp_path / "st" / "modules.json").write_text(json.dumps([{**modules[0], "path": "../base"}]))
    with pytest.raises(BundleError, match=r"names the folder \.\./base, which is outside the model folder"):
        open_bundle(tmp_path / "st")
