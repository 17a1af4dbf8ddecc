"""Read Hugging Face's CLIP and SigLIP folders: `config.json`, weights, settings of the image processor, tokenizer files.

`transformers` is not needed, because the files are plain JSON and safetensors.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.bundle.foreign_tokenizer import END, START, own_tokenizer_file, preparation_of, tokenizer_file_of
from diptych.bundle.json_objects import read_object
from diptych.bundle.processor import processor_pixels
from diptych.bundle.renaming import Rename, from_theirs, norm, same, shaped
from diptych.bundle.siglip_names import hugging_face_siglip_names
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import from_plain
from diptych.images.transforms import PixelConfig, height_width
from diptych.models.clip import CLIP
from diptych.models.config import Activation, CLIPConfig, TextConfig, ViTConfig
from diptych.tokenizers.clip_bpe import clip_vocabulary
from diptych.tokenizers.protocol import END as END_ID

CONFIG = "config.json"
CLIP_END_ID = 49407
"""Id of the end token in CLIP's tokenizer."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_CLIP = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "vision": {
            **_CLIP,
            **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            **{"image_size": 224, "patch_size": 32},
        },
        "text": {
            **_CLIP,
            **{"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
            **{"vocab_size": 49408, "max_position_embeddings": 77},
        },
    },
    "siglip": {
        "vision": {**_SIGLIP, "image_size": 224, "patch_size": 16},
        "text": {**_SIGLIP, "vocab_size": 32000, "max_position_embeddings": 64},
    },
}
"""Defaults of the library for settings that a config does not contain, by model type and tower."""
DEFAULTS["siglip2"] = DEFAULTS["siglip"]
_LIKE_CLIP = {"metaclip_2": "clip"}
"""Model types whose towers have the layout, the names and the defaults of another type."""


def hugging_face_names(config: CLIPConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names and those of `transformers.CLIPModel` or `SiglipModel`."""
    image, text = config.image, config.own_text
    assert isinstance(image, ViTConfig)
    if image.layout == "siglip":
        return hugging_face_siglip_names(config)
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
    """Return the model in a folder that `save_pretrained` of `CLIPModel` or `SiglipModel` wrote, or in a similar folder.

    Raises:
        BundleError: a file is missing or damaged, or the model has a feature that Diptych does not support; the message names
            it.
    """
    content = read_object(folder / CONFIG, is_required=True)
    known = [*DEFAULTS, *_LIKE_CLIP]
    if content.get("model_type") not in known:
        supported = ", ".join(known)
        raise BundleError(
            f"{folder / CONFIG}: model_type is {content.get('model_type')!r:.60}; Diptych supports {supported}"
        )
    try:
        config = _config(content, folder)
    except (AttributeError, TypeError, ValueError, ArithmeticError, ConfigError) as error:
        raise BundleError(f"{folder / CONFIG}: {error}") from None
    config = replace(config, pixels=_pixel_config(folder, config))
    if config.text.tokenizer == "clip-bpe" and own_tokenizer_file(folder) is None:
        _check_vocabulary(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise BundleError(f"{folder}: holds no weights; Hugging Face's are {WEIGHTS[0]} or {WEIGHTS[2]}")
    weights = {name: tensor for name, tensor in read_weights(path).items() if not name.endswith(".position_ids")}
    shape = (1,) if config.init_logit_bias is not None else ()
    if "logit_scale" in weights and weights["logit_scale"].numel() == 1:
        weights["logit_scale"] = weights["logit_scale"].reshape(shape)
    return CLIP.from_weights(config, from_theirs(weights, hugging_face_names(config), config, what=str(path)))


def _tower(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of a tower without nulls.

    In old files they are in `NAME_dict`; settings that are missing there have the defaults of the library.
    """
    found = content.get(f"{name}_dict") or content.get(name) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is {found!r:.40}, not an object")
    return {key: value for key, value in found.items() if value is not None}


def _config(content: Mapping[str, Any], folder: Path) -> CLIPConfig:
    model_type = _LIKE_CLIP.get(content["model_type"], content["model_type"])
    defaults, vision = DEFAULTS[model_type], _tower(content, "vision_config")
    text = {**defaults["text"], **_tower(content, "text_config")}
    image = _image_config({**defaults["vision"], **vision}, model_type)
    if model_type == "clip":
        tower = _clip_text_config(text, folder)
        return CLIPConfig(embed_dim=_whole(content, "projection_dim", 512), image=image, text=tower)
    embed_dim = _whole(text, "projection_size", text["hidden_size"])
    if embed_dim != image.width:
        raise ConfigError(
            f"text_config has projection_size {embed_dim}, but the image embeddings have {image.width} dimensions"
        )
    tower = _siglip_text_config(text, folder)
    return CLIPConfig(embed_dim=embed_dim, image=image, text=tower, init_temperature=0.1, init_logit_bias=-10.0)


def _whole(content: Mapping[str, Any], name: str, default: int) -> int:
    found = content.get(name)
    found = default if found is None else found
    if not isinstance(found, int):
        raise ConfigError(f"{name} is {found!r:.40}, which is not a whole number")
    return found


def _image_config(vision: Mapping[str, Any], model_type: str) -> ViTConfig:
    if vision.get("num_channels", 3) != 3:
        raise ConfigError(f"vision_config has num_channels {vision['num_channels']}; Diptych supports 3")
    if not vision.get("vision_use_head", True):
        raise ConfigError(
            "vision_config has vision_use_head False, so the model has no image embedding; use a model with attention pooling"
        )
    siglip = {} if model_type == "clip" else {"layout": "siglip", "pooling": "attention"}
    plain = {
        "image_px": _pixels(vision["image_size"]),
        "patch_px": _pixels(vision["patch_size"]),
        **_shared("vision_config", vision, model_type),
        **siglip,
    }
    return from_plain(ViTConfig, plain, what="vision_config")


def _pixels(size: Any) -> Any:
    return tuple(size) if isinstance(size, list) else size


def _clip_text_config(text: Mapping[str, Any], folder: Path) -> TextConfig:
    kind, preparation = tokenizer_file_of(folder)[0], preparation_of(folder)
    if kind == "clip-bpe" and text["vocab_size"] != 49408:
        raise ConfigError(f"text_config has vocab_size {text['vocab_size']}; CLIP's tokenizer has 49408 entries")
    end_id = {"clip-bpe": CLIP_END_ID, "pretrained": preparation.end_id, "sentencepiece": preparation.end_id}.get(
        kind, END_ID
    )
    # With an `eos_token_id` of 2, CLIPModel pools a text at its largest token id, which is the end token of CLIP's tokenizer.
    pools_at = text.get("eos_token_id", CLIP_END_ID)
    is_largest = pools_at == 2 and end_id in {CLIP_END_ID, text["vocab_size"] - 1} and text["vocab_size"] <= 49408
    if pools_at != end_id and not is_largest:
        raise ConfigError(
            f"text_config has eos_token_id {pools_at}, but the end token of its tokenizer has id {end_id}"
        )
    return _text_config(text, "clip", {"tokenizer": kind, "preparation": preparation})


def _siglip_text_config(text: Mapping[str, Any], folder: Path) -> TextConfig:
    kind, path = tokenizer_file_of(folder)
    if path is None:
        raise ConfigError("model_type is 'siglip', but the folder has no tokenizer (tokenizer.json or spiece.model)")
    settings = {"layout": "siglip", "is_causal": False, "tokenizer": kind, "preparation": preparation_of(folder)}
    return _text_config(text, "siglip", settings)


def _text_config(text: Mapping[str, Any], model_type: str, settings: Mapping[str, Any]) -> TextConfig:
    plain = {
        "vocab_size": text["vocab_size"],
        "context_length": text["max_position_embeddings"],
        **_shared("text_config", text, model_type),
        **settings,
    }
    return from_plain(TextConfig, plain, what="text_config")


def _shared(where: str, tower: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    activation, eps, width = tower["hidden_act"], tower["layer_norm_eps"], tower["hidden_size"]
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{where} has hidden_act {activation!r}; Diptych supports {', '.join(ACTIVATIONS)}")
    if not isinstance(eps, float | int) or not 0 < eps < 1:
        raise ConfigError(f"{where} has layer_norm_eps {eps!r:.40}; it must lie within (0, 1)")
    is_default = math.isclose(eps, DEFAULTS[model_type]["text"]["layer_norm_eps"])
    return {
        "width": width,
        "layers": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "mlp_ratio": tower["intermediate_size"] / width,
        "activation": ACTIVATIONS[activation],
        **({} if is_default else {"norm_eps": eps}),
    }


def read_processor(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the path of the file with the image transform, and its settings; None if there is none.

    The newer `processor_config.json` has priority, as in `transformers`.
    """
    path = folder / "processor_config.json"
    nested = read_object(path, is_required=True).get("image_processor") if path.is_file() else None
    if isinstance(nested, dict):
        return path, nested
    path = folder / "preprocessor_config.json"
    return (path, read_object(path, is_required=True)) if path.is_file() else None


def _pixel_config(folder: Path, config: CLIPConfig) -> PixelConfig:
    """Return the image transform of a folder; without a file, the default of the model's processor in transformers."""
    found = read_processor(folder)
    plain = {} if found is None else found[1]
    image, path = config.image, folder / "preprocessor_config.json" if found is None else found[0]
    if found is None and isinstance(image, ViTConfig) and image.layout == "siglip":
        plain = {"image_processor_type": "SiglipImageProcessor"}
    return processor_pixels(plain, image.image_px, what=str(path))


def _check_vocabulary(folder: Path) -> None:
    """Raise an error if the tokenizer files of a folder contain a vocabulary other than CLIP's."""
    for name in ("vocab.json", "tokenizer.json"):
        path = folder / name
        if path.is_file():
            content = read_object(path, is_required=True)
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
