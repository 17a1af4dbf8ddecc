"""Read Hugging Face's CLIP folders: `config.json`, weights, the settings of the image processor, and the tokenizer files.

`transformers` is not needed, because the files are plain JSON and safetensors.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.bundle.renaming import Rename, from_theirs, norm, same, shaped
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import from_plain, read_json
from diptych.images.transforms import PixelConfig, height_width
from diptych.models.clip import CLIP
from diptych.models.config import Activation, CLIPConfig, TextConfig, ViTConfig
from diptych.tokenizers.clip_bpe import clip_vocabulary

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
FILTERS = {2: "bilinear", 3: "bicubic"}
"""Interpolation filters by Pillow's numbers, which the image processor's file contains."""
START, END = "<|startoftext|>", "<|endoftext|>"


def hugging_face_names(config: CLIPConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names and those of `transformers.CLIPModel`."""
    image, text = config.image, config.text
    assert isinstance(image, ViTConfig)
    vision = "vision_model.embeddings"
    return [
        shaped("image_tower.stem.embed.weight", f"{vision}.patch_embedding.weight", (3, *height_width(image.patch_px))),
        same("image_tower.class_emb", f"{vision}.class_embedding"),
        same("image_tower.position_emb", f"{vision}.position_embedding.weight"),
        *norm("image_tower.norm_pre", "vision_model.pre_layrnorm"),
        *_blocks("image_tower.transformer", "vision_model.encoder", image.layers),
        *norm("image_tower.norm_post", "vision_model.post_layernorm"),
        same("image_tower.projection.weight", "visual_projection.weight"),
        same("text_tower.token_emb.weight", "text_model.embeddings.token_embedding.weight"),
        same("text_tower.position_emb", "text_model.embeddings.position_embedding.weight"),
        *_blocks("text_tower.transformer", "text_model.encoder", text.layers),
        *norm("text_tower.norm_post", "text_model.final_layer_norm"),
        same("text_tower.projection.weight", "text_projection.weight"),
        same("log_logit_scale", "logit_scale"),
    ]


def _blocks(ours: str, theirs: str, layers: int) -> list[Rename]:
    pairs = {
        "norm_1": "layer_norm1",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.out": "self_attn.out_proj",
        "norm_2": "layer_norm2",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    }
    return [
        rename
        for i in range(layers)
        for mine, other in pairs.items()
        for rename in norm(f"{ours}.blocks.{i}.{mine}", f"{theirs}.layers.{i}.{other}")
    ]


def read_hugging_face(folder: Path) -> CLIP:
    """Return the model in a folder that `CLIPModel.save_pretrained` wrote, or in a similar folder from the hub.

    Raises:
        BundleError: a file is missing or damaged, or the model has a feature that Diptych does not support; the message names
            it.
    """
    content = _read_json(folder / CONFIG)
    if content.get("model_type") != "clip":
        raise BundleError(f"{folder / CONFIG}: model_type is {content.get('model_type')!r}; Diptych supports 'clip'")
    try:
        image, text = _image_config(_tower(content, "vision_config")), _text_config(_tower(content, "text_config"))
        config = CLIPConfig(embed_dim=content.get("projection_dim", 512), image=image, text=text)
    except (AttributeError, TypeError, ValueError, ArithmeticError, ConfigError) as error:
        raise BundleError(f"{folder / CONFIG}: {error}") from None
    config = replace(config, pixels=_pixel_config(folder, image))
    _check_vocabulary(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise BundleError(f"{folder}: holds no weights; Hugging Face's are {WEIGHTS[0]} or {WEIGHTS[2]}")
    weights = {name: tensor for name, tensor in read_weights(path).items() if not name.endswith(".position_ids")}
    if "logit_scale" in weights and weights["logit_scale"].numel() == 1:
        weights["logit_scale"] = weights["logit_scale"].reshape(())
    return CLIP.from_weights(config, from_theirs(weights, hugging_face_names(config), config, what=str(path)))


def _tower(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of a tower without nulls.

    In old files they are in `NAME_dict`; settings that are missing there have the defaults of the library.
    """
    found = content.get(f"{name}_dict") or content.get(name) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is {found!r:.40}, not an object")
    return {key: value for key, value in found.items() if value is not None}


def _image_config(vision: Mapping[str, Any]) -> ViTConfig:
    width = vision.get("hidden_size", 768)
    if vision.get("num_channels", 3) != 3:
        raise ConfigError(f"vision_config has num_channels {vision['num_channels']}; Diptych supports 3")
    plain = {
        "image_px": vision.get("image_size", 224),
        "patch_px": vision.get("patch_size", 32),
        "layers": vision.get("num_hidden_layers", 12),
        "heads": vision.get("num_attention_heads", 12),
        **_shared("vision_config", vision, width, vision.get("intermediate_size", 3072)),
    }
    return from_plain(ViTConfig, plain, what="vision_config")


def _text_config(text: Mapping[str, Any]) -> TextConfig:
    width = text.get("hidden_size", 512)
    if text.get("vocab_size", 49408) != 49408:
        raise ConfigError(f"text_config has vocab_size {text['vocab_size']}; Diptych supports only CLIP's, 49408")
    # With an `eos_token_id` of 2, a text is pooled at its largest token id, which is the end token.
    if text.get("eos_token_id", 49407) not in (49407, 2):
        raise ConfigError(f"text_config has eos_token_id {text['eos_token_id']}; Diptych supports only CLIP's, 49407")
    plain = {
        "tokenizer": "clip-bpe",
        "vocab_size": 49408,
        "context_length": text.get("max_position_embeddings", 77),
        "layers": text.get("num_hidden_layers", 12),
        "heads": text.get("num_attention_heads", 8),
        **_shared("text_config", text, width, text.get("intermediate_size", 2048)),
    }
    return from_plain(TextConfig, plain, what="text_config")


def _shared(where: str, tower: Mapping[str, Any], width: int, hidden: int) -> dict[str, Any]:
    activation = tower.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{where} has hidden_act {activation!r}; Diptych supports {', '.join(ACTIVATIONS)}")
    if not math.isclose(tower.get("layer_norm_eps", 1e-5), 1e-5):
        raise ConfigError(f"{where} has layer_norm_eps {tower['layer_norm_eps']}; Diptych supports 1e-05")
    return {"width": width, "mlp_ratio": hidden / width, "activation": ACTIVATIONS[activation]}


def read_processor(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the path of the file with the image transform, and its settings; None if there is none.

    The newer `processor_config.json` has priority, as in `transformers`.
    """
    path = folder / "processor_config.json"
    nested = _read_json(path).get("image_processor") if path.is_file() else None
    if isinstance(nested, dict):
        return path, nested
    path = folder / "preprocessor_config.json"
    return (path, _read_json(path)) if path.is_file() else None


def _pixel_config(folder: Path, image: ViTConfig) -> PixelConfig:
    """Return the image transform of a folder; without a file, OpenAI's transform as in `CLIPImageProcessor`."""
    found = read_processor(folder)
    if found is None:
        return PixelConfig(crop_rounding="down")
    path, plain = found[0], {name: value for name, value in found[1].items() if value is not None}
    for switch in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if plain.get(switch) is False:
            raise BundleError(f"{path}: has {switch} false, which Diptych does not support")
    if not math.isclose(plain.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise BundleError(f"{path}: has rescale_factor {plain['rescale_factor']}; Diptych supports 1/255")
    height, width = height_width(image.image_px)
    short = min(height, width)
    fitting = {
        "size": (None, short, {"shortest_edge": short}),
        "crop_size": (None, height, {"height": height, "width": width}),
    }
    for name, sizes in fitting.items():
        if plain.get(name) not in sizes:
            raise BundleError(f"{path}: has {name} {plain[name]}, but the model's input is {height}x{width} px")
    resample = plain.get("resample", 3)
    if not isinstance(resample, int) or resample not in FILTERS:
        raise BundleError(f"{path}: has resample {resample}; Diptych supports {FILTERS}")
    known = {"mean": plain.get("image_mean"), "std": plain.get("image_std"), "interpolation": FILTERS[resample]}
    given = {name: value for name, value in known.items() if value is not None}
    try:
        return from_plain(PixelConfig, {**given, "crop_rounding": "down"}, what=str(path))
    except ConfigError as error:
        raise BundleError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _check_vocabulary(folder: Path) -> None:
    """Raise an error if the tokenizer files of a folder contain a vocabulary other than CLIP's."""
    for name in ("vocab.json", "tokenizer.json"):
        path = folder / name
        if path.is_file():
            content = _read_json(path)
            model = content.get("model")
            inner = model.get("vocab") if isinstance(model, dict) else None
            found = content if name == "vocab.json" else inner
            if found != hub_vocabulary():
                size = f" of {len(found)} entries" if isinstance(found, dict | list) else ""
                raise BundleError(f"{path}: holds another vocabulary{size}; Diptych supports only CLIP's")


def hub_vocabulary() -> dict[str, int]:
    """Return CLIP's vocabulary as token ids by token, with the special tokens named as on the hub."""
    names = {"<start_of_text>": START, "<end_of_text>": END}
    return {names.get(token, token): i for token, i in clip_vocabulary().items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if not isinstance(content, dict):
        raise BundleError(f"{path}: holds no JSON object")
    return content
