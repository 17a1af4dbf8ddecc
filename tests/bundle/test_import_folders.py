"""Folders of other libraries that are refused: by name, in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.bundle.folder import Bundle
from diptych.bundle.hugging_face_writer import write_hugging_face
from diptych.bundle.open_bundle import _WRITERS, export_bundle, open_bundle
from diptych.bundle.open_clip import CONFIG, write_open_clip
from diptych.core.errors import BundleError
from diptych.images.transforms import PixelConfig
from diptych.models.clip import CLIP
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from diptych.tokenizers.protocol import Tokenizer
from tests.bundle.makers import assert_refused


@pytest.fixture
def open_clip_folder(model: CLIP, tmp_path: Path) -> Path:
    folder = tmp_path / "open_clip"
    folder.mkdir()
    write_open_clip(model, ClipBPETokenizer(), folder)
    return folder


@pytest.fixture
def hugging_face_folder(model: CLIP, tmp_path: Path) -> Path:
    folder = tmp_path / "hugging_face"
    folder.mkdir()
    write_hugging_face(model, ClipBPETokenizer(), folder)
    return folder


def _change(path: Path, *keys: str, value: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(json.dumps(content), "utf-8")


def test_a_hugging_face_file_alone(hugging_face_folder: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((hugging_face_folder / "model.safetensors").read_bytes())
    assert_refused(lone, "pass the folder, which contains config.json")


OPEN_CLIP = [
    (("model_cfg", "vision_cfg", "timm_model_name"), "vit_bas_patch16_224", "did you mean 'vit_base_patch16_224'"),
    (("model_cfg", "vision_cfg", "no_ln_pre"), True, r"unexpected tensors: visual\.ln_pre\.bias"),
    (("model_cfg", "vision_cfg", "attentional_pool"), True, r"tensors are missing: visual\.attn_pool"),
    (("model_cfg", "vision_cfg", "attentional_pool"), "parallel", "vision_cfg has attentional_pool 'parallel'"),
    (("model_cfg", "vision_cfg", "pool_type"), "none", "vision_cfg has pool_type 'none'"),
    (("model_cfg", "vision_cfg", "pos_embed_type"), "rotary", "vision_cfg has pos_embed_type 'rotary'"),
    (("model_cfg", "vision_cfg", "norm_kwargs"), {"elementwise_affine": False}, "vision_cfg has norm_kwargs"),
    (("model_cfg", "vision_cfg", "norm_kwargs"), {"eps": 2.0}, "norm_eps is 2.0"),
    (("model_cfg", "vision_cfg", "qk_norm"), True, "vision_cfg has qk_norm True"),
    (("model_cfg", "vision_cfg", "act_kwargs"), {"negative_slope": 1}, "a tower has act_kwargs"),
    (("model_cfg", "vision_cfg", "sparkles"), 1, "vision_cfg has sparkles, which Diptych does not know"),
    (("model_cfg", "vision_cfg", "width"), "wide", "vision_cfg"),
    (
        ("model_cfg", "text_cfg", "hf_model_name"),
        "roberta",
        "the model needs the config of the text encoder roberta; save its config.json as text_config.json",
    ),
    (("model_cfg", "text_cfg", "vocab_size"), 250002, "vocab_size is 250002; clip-bpe has 49408"),
    (("model_cfg", "text_cfg", "tokenizer_kwargs"), {"clean": "lower"}, "text_cfg has tokenizer_kwargs"),
    (("model_cfg", "text_cfg", "tokenizer_mode"), "clips", "text_cfg has tokenizer_mode 'clips'"),
    (("model_cfg", "text_cfg", "embed_cls"), True, r"tensors are missing: cls_emb"),
    (("model_cfg", "text_cfg", "proj_type"), "mlp", "text_cfg has proj_type 'mlp'"),
    (("model_cfg", "text_cfg", "scale_fc"), True, "text_cfg has scale_fc True"),
    (("model_cfg", "text_cfg", "pool_type"), "last", "text_cfg has pool_type 'last'"),
    (("model_cfg", "embed_dim"), 17, r"wrong shapes: .*visual\.proj is 64x16, expected 64x17"),
    (("model_cfg",), None, "model_cfg is None, not an object"),
    (("model_cfg", "vision_cfg"), [], r"vision_cfg is \[\], not an object"),
    (("model_cfg", "text_cfg"), "x", "text_cfg is 'x', not an object"),
    (("model_cfg", "vision_cfg", "head_width"), 0, "vision_cfg has head_width 0"),
    (("model_cfg", "text_cfg", "pool_type"), "eos", "text_cfg has eos_id 2; Diptych supports only CLIP's, 49407"),
    (("preprocess_cfg", "resize_mode"), "stretch", "preprocess_cfg has resize_mode 'stretch'"),
    (("preprocess_cfg", "mode"), "L", "preprocess_cfg has mode 'L'"),
    (("preprocess_cfg", "interpolation"), "nearest", "preprocess_cfg.*interpolation"),
]


@pytest.mark.parametrize(("keys", "value", "message"), OPEN_CLIP)
def test_open_clip_folders_that_areassert_refused(
    open_clip_folder: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    _change(open_clip_folder / CONFIG, *keys, value=value)
    assert_refused(open_clip_folder, message)


def test_open_clip_folders_that_lack_something(open_clip_folder: Path) -> None:
    assert_refused(open_clip_folder, "has gelu, but the activation was given as quick_gelu", activation="quick_gelu")
    assert_refused(open_clip_folder, "--preset is only for weights files", preset="vit-b-32")
    (open_clip_folder / "open_clip_model.safetensors").unlink()
    assert_refused(open_clip_folder, "holds no weights; open_clip's are open_clip_model.safetensors")
    (open_clip_folder / CONFIG).write_text("{")
    assert_refused(open_clip_folder, r"open_clip_config\.json: is not JSON")
    (open_clip_folder / CONFIG).write_text("[]")
    assert_refused(open_clip_folder, "holds no JSON object")


HUGGING_FACE = [
    (
        "config.json",
        ("model_type",),
        "blip",
        "model_type is 'blip'; Diptych supports clip, siglip, siglip2, metaclip_2",
    ),
    ("config.json", ("vision_config", "hidden_act"), "silu", "vision_config has hidden_act 'silu'"),
    ("config.json", ("vision_config", "num_channels"), 1, "num_channels 1"),
    ("config.json", ("model_type",), {}, "model_type is {}; Diptych supports clip"),
    ("config.json", ("vision_config",), "x", "vision_config is 'x', not an object"),
    ("config.json", ("vision_config", "hidden_size"), 0, "config.json: "),
    ("config.json", ("text_config", "eos_token_id"), 5000, "text_config has eos_token_id 5000"),
    ("config.json", ("vision_config_dict",), {"hidden_act": "gelu"}, "but the model's input is 224x224"),
    ("vocab.json", ("dog</w>",), None, "holds another vocabulary"),
    ("config.json", ("vision_config", "patch_size"), 7, "not a multiple of patch_px 7"),
    ("config.json", ("vision_config", "image_size"), 64, "the model's input is 64x64 px"),
    ("config.json", ("text_config", "layer_norm_eps"), -1e-6, "text_config has layer_norm_eps -1e-06"),
    ("config.json", ("text_config", "layer_norm_eps"), "small", "text_config has layer_norm_eps 'small'"),
    (
        "config.json",
        ("text_config", "vocab_size"),
        99,
        "text_config has vocab_size 99; CLIP's tokenizer has 49408 entries",
    ),
    ("config.json", ("text_config", "num_hidden_layers"), 2, r"tensors are missing: text_model\.encoder\.layers\.1"),
    ("config.json", ("projection_dim",), 1.5, "projection_dim is 1.5, which is not a whole number"),
    ("config.json", ("projection_dim",), 17, "wrong shapes: .*projection.weight is 16x64, expected 17x64"),
    ("preprocessor_config.json", ("do_resize",), False, "has do_resize false"),
    (
        "preprocessor_config.json",
        ("do_center_crop",),
        False,
        "without do_center_crop, so its images have no fixed shape",
    ),
    ("preprocessor_config.json", ("image_processor_type",), "Siglip2ImageProcessor", "is a NaFlex model"),
    ("preprocessor_config.json", ("image_processor_type",), "DetrImageProcessor", "is a DetrImageProcessor, which"),
    ("preprocessor_config.json", ("pad_size",), {"height": 99, "width": 99}, "has pad_size"),
    ("preprocessor_config.json", ("crop_size",), {"height": 30, "width": 30}, "has crop_size"),
    (
        "preprocessor_config.json",
        ("size",),
        {"height": 40, "width": 32},
        "has size .* but the model's input is 32x32 px",
    ),
    ("preprocessor_config.json", ("size",), {"shortest_edge": 30}, "is smaller than its crop"),
    (
        "preprocessor_config.json",
        ("size",),
        {"shortest_edge": 32, "longest_edge": 99},
        "a shortest_edge, or height and",
    ),
    ("preprocessor_config.json", ("size",), "large", "has size 'large'"),
    ("preprocessor_config.json", ("resample",), 0, "has resample 0"),
    ("preprocessor_config.json", ("rescale_factor",), 0, "has rescale_factor 0; it must be above 0"),
    ("preprocessor_config.json", ("image_mean",), {"red": 1}, "preprocessor_config.json: damaged"),
    ("preprocessor_config.json", ("image_std",), [0, 0, 0], "each must be above 0"),
    ("vocab.json", ("dog</w>",), 3, "holds another vocabulary of 49408 entries"),
]


@pytest.mark.parametrize(("file", "keys", "value", "message"), HUGGING_FACE)
def test_hugging_face_folders_that_areassert_refused(
    hugging_face_folder: Path, file: str, keys: tuple[str, ...], value: Any, message: str
) -> None:
    _change(hugging_face_folder / file, *keys, value=value)
    assert_refused(hugging_face_folder, message)
    with pytest.raises(BundleError, match=re.escape(str(hugging_face_folder))):
        open_bundle(hugging_face_folder)


def test_an_old_hugging_face_config_keeps_its_towers_in_dicts(hugging_face_folder: Path, model: CLIP) -> None:
    config = json.loads((hugging_face_folder / "config.json").read_text("utf-8"))
    for name in ("text_config", "vision_config"):
        config[f"{name}_dict"], config[name] = config[name], {"hidden_size": 999}
    (hugging_face_folder / "config.json").write_text(json.dumps(config))
    assert open_bundle(hugging_face_folder).config.image == model.config.image


def test_the_newer_processor_file_goes_before_the_older(hugging_face_folder: Path) -> None:
    old = json.loads((hugging_face_folder / "preprocessor_config.json").read_text("utf-8"))
    new = {"processor_class": "CLIPProcessor", "image_processor": {**old, "image_mean": [0.1, 0.2, 0.3]}}
    (hugging_face_folder / "processor_config.json").write_text(json.dumps(new))
    assert open_bundle(hugging_face_folder).config.pixels.mean == (0.1, 0.2, 0.3)
    (hugging_face_folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    (hugging_face_folder / "preprocessor_config.json").unlink()
    assert "no preprocessor_config.json" in open_bundle(hugging_face_folder).origin["assumed"]


def test_hugging_face_folders_that_lack_something(hugging_face_folder: Path) -> None:
    assert "assumed" not in open_bundle(hugging_face_folder).origin
    (hugging_face_folder / "preprocessor_config.json").unlink()
    bundle = open_bundle(hugging_face_folder)
    assert bundle.config.pixels == PixelConfig(crop_rounding="down")
    assert "no preprocessor_config.json" in bundle.origin["assumed"]
    (hugging_face_folder / "model.safetensors").unlink()
    assert_refused(hugging_face_folder, "holds no weights; Hugging Face's are model.safetensors or pytorch_model.bin")


def test_hugging_face_weights_in_parts_and_of_half_precision(hugging_face_folder: Path, model: CLIP) -> None:
    whole = load_file(hugging_face_folder / "model.safetensors")
    (hugging_face_folder / "model.safetensors").unlink()
    parts = {"one.safetensors": sorted(whole)[::2], "two.safetensors": sorted(whole)[1::2]}
    for file, names in parts.items():
        save_file({name: whole[name].bfloat16() for name in names}, hugging_face_folder / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (hugging_face_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    read = open_bundle(hugging_face_folder).model
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor.bfloat16().float()), name
    (hugging_face_folder / "two.safetensors").unlink()
    assert_refused(hugging_face_folder, r"two\.safetensors: cannot be read as weights")


def test_a_damaged_export_is_not_kept(model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(model: CLIP, tokenizer: Tokenizer, folder: Path) -> None:
        write_open_clip(model, tokenizer, folder)
        weights = load_file(folder / "open_clip_model.safetensors")
        weights["visual.proj"][0, 0] += 1e-3
        save_file(weights, folder / "open_clip_model.safetensors")

    monkeypatch.setitem(_WRITERS, "open-clip", (careless, _WRITERS["open-clip"][1]))
    with pytest.raises(BundleError, match="gave a different model"):
        export_bundle(Bundle(model=model, tokenizer=ClipBPETokenizer()), "open-clip", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
