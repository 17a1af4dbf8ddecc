"""Read Hugging Face's CLIP and SigLIP folders: `config.json`, weights, settings of the image processor, tokenizer files.

`transformers` is not needed, because the files are plain JSON and safetensors.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.bundle.foreign_tokenizer import END, START, own_tokenizer_file
from diptych.bundle.renaming import Rename, from_theirs, norm, same, shaped
from diptych.bundle.siglip_names import hugging_face_siglip_names
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import from_plain, read_json
from diptych.images.transforms import PixelConfig, height_width
from diptych.models.clip import CLIP
from diptych.models.config import Activation, CLIPConfig, ImageConfig, TextConfig, ViTConfig
from diptych.tokenizers.clip_bpe import clip_vocabulary
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.protocol import END as END_ID

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
FILTERS = {2: "bilinear", 3: "bicubic"}
"""Interpolation filters by Pillow's numbers, which the image processor's file contains."""
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


def hugging_face_names(config: CLIPConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names and those of `transformers.CLIPModel` or `SiglipModel`."""
    image, text = config.image, config.text
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
    content = _read_json(folder / CONFIG)
    if content.get("model_type") not in DEFAULTS:
        raise BundleError(
            f"{folder / CONFIG}: model_type is {content.get('model_type')!r}; Diptych supports {' and '.join(DEFAULTS)}"
        )
    try:
        config = _config(content, folder)
    except (AttributeError, TypeError, ValueError, ArithmeticError, ConfigError) as error:
        raise BundleError(f"{folder / CONFIG}: {error}") from None
    config = replace(config, pixels=_pixel_config(folder, config.image))
    if own_tokenizer_file(folder) is None:
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
    model_type = content["model_type"]
    defaults, own_tokenizer = DEFAULTS[model_type], own_tokenizer_file(folder)
    if model_type == "siglip" and own_tokenizer is None:
        raise ConfigError(
            "model_type is 'siglip'; Diptych has no SentencePiece tokenizer, so it reads only SigLIP folders that it exported"
        )
    image = _image_config({**defaults["vision"], **_tower(content, "vision_config")}, model_type)
    text = _text_config({**defaults["text"], **_tower(content, "text_config")}, model_type, own_tokenizer)
    if model_type == "clip":
        return CLIPConfig(embed_dim=content.get("projection_dim", 512), image=image, text=text)
    return CLIPConfig(embed_dim=image.width, image=image, text=text, init_temperature=0.1, init_logit_bias=-10.0)


def _image_config(vision: Mapping[str, Any], model_type: str) -> ViTConfig:
    if vision.get("num_channels", 3) != 3:
        raise ConfigError(f"vision_config has num_channels {vision['num_channels']}; Diptych supports 3")
    if not vision.get("vision_use_head", True):
        raise ConfigError("vision_config has vision_use_head False; Diptych supports only SigLIP's attention pooling")
    siglip = {"layout": "siglip", "pooling": "attention"} if model_type == "siglip" else {}
    plain = {
        "image_px": vision["image_size"],
        "patch_px": vision["patch_size"],
        **_shared("vision_config", vision, model_type),
        **siglip,
    }
    return from_plain(ViTConfig, plain, what="vision_config")


def _text_config(
    text: Mapping[str, Any], model_type: str, own_tokenizer: tuple[TokenizerKind, Path] | None
) -> TextConfig:
    kind = "clip-bpe" if own_tokenizer is None else own_tokenizer[0]
    if kind == "clip-bpe" and text["vocab_size"] != 49408:
        raise ConfigError(f"text_config has vocab_size {text['vocab_size']}; Diptych supports only CLIP's, 49408")
    # With an `eos_token_id` of 2, CLIPModel pools a text at its largest token id, which is the end token of CLIP's tokenizer.
    end_ids = (49407, 2) if kind == "clip-bpe" else (END_ID,)
    if model_type == "clip" and text.get("eos_token_id", 49407) not in end_ids:
        expected = "CLIP's, 49407" if kind == "clip-bpe" else f"{END_ID} with this tokenizer"
        raise ConfigError(f"text_config has eos_token_id {text.get('eos_token_id')}; Diptych supports only {expected}")
    siglip = {"layout": "siglip", "is_causal": False} if model_type == "siglip" else {}
    plain = {
        "tokenizer": kind,
        "vocab_size": text["vocab_size"],
        "context_length": text["max_position_embeddings"],
        **_shared("text_config", text, model_type),
        **siglip,
    }
    return from_plain(TextConfig, plain, what="text_config")


def _shared(where: str, tower: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    activation, eps, width = tower["hidden_act"], tower["layer_norm_eps"], tower["hidden_size"]
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{where} has hidden_act {activation!r}; Diptych supports {', '.join(ACTIVATIONS)}")
    expected = DEFAULTS[model_type]["text"]["layer_norm_eps"]
    if not math.isclose(eps, expected):
        raise ConfigError(f"{where} has layer_norm_eps {eps}; Diptych supports {expected:g}")
    return {
        "width": width,
        "layers": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "mlp_ratio": tower["intermediate_size"] / width,
        "activation": ACTIVATIONS[activation],
    }


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


def _pixel_config(folder: Path, image: ImageConfig) -> PixelConfig:
    """Return the image transform of a folder; without a file, OpenAI's transform as in `CLIPImageProcessor`."""
    found = read_processor(folder)
    if found is None:
        return PixelConfig(crop_rounding="down")
    path, plain = found[0], {name: value for name, value in found[1].items() if value is not None}
    if str(plain.get("image_processor_type", "")).startswith("Siglip"):
        raise BundleError(f"{path}: resizes pictures without keeping the aspect ratio, which Diptych does not support")
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
