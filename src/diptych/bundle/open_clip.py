"""Read and write open_clip's model folders (`local-dir:`): `open_clip_config.json` and weights in OpenAI's naming."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from diptych.bundle.foreign_tokenizer import own_tokenizer_file, write_own_tokenizer
from diptych.bundle.libraries import check_open_clip, is_siglip
from diptych.bundle.openai import load_openai, openai_names
from diptych.bundle.renaming import to_theirs
from diptych.bundle.siglip_names import timm_name, timm_tower
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import from_plain, read_json
from diptych.images.transforms import PixelConfig
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ConvNetConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.models.layers import hidden_width
from diptych.tokenizers.hugging_face import write_tokenizer_files
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.protocol import END, Tokenizer

CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")
_OLDER_WEIGHTS = ("open_clip_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin", "model.pth")

_VISION: dict[str, Any] = {
    "ls_init_value": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
"""Options of open_clip's image towers, each with the only value that Diptych supports."""
_TEXT: dict[str, Any] = {
    **{name: value for name, value in _VISION.items() if name.startswith(("ls_", "norm_", "block_", "qk_", "scale"))},
    "vocab_size": 49408,
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "tokenizer_kwargs": None,
    "embed_cls": False,
    "no_causal_mask": False,  # Without a causal mask, open_clip attends to padding; Diptych never does.
    "proj_type": "linear",
    "proj_bias": False,
}
_SIGLIP_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
"""Options of a text tower in SigLIP's layout. Without a causal mask, open_clip attends to the padding, as SigLIP does."""
_TOKENIZER = "tokenizer.json"
"""Value of `hf_tokenizer_name`. Any value makes open_clip read the tokenizer from the folder instead of using its own."""
_HARMLESS = {
    "output_tokens", "pad_id", "eos_id", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool",
    "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
    "tokenizer_mode",
}  # fmt: skip


def read_open_clip(folder: Path) -> CLIP:
    """Return the model in an open_clip folder.

    Raises:
        BundleError: a file is missing or damaged, or the model has a feature that Diptych does not support; the message names
            it.
    """
    path = folder / CONFIG
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError("holds no JSON object")
        model, pixels = _object(content, "model_cfg"), _object(content, "preprocess_cfg")
        config = _config(model, pixels, own_tokenizer=own_tokenizer_file(folder))
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"{path}: is not a config of open_clip ({type(error).__name__}: {error})") from None
    except ConfigError as error:
        raise BundleError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    weights = next((folder / name for name in (*_WEIGHTS, *_OLDER_WEIGHTS) if (folder / name).is_file()), None)
    if weights is None:
        raise BundleError(f"{folder}: holds no weights; open_clip's are {_WEIGHTS[0]} or {_WEIGHTS[1]}")
    return load_openai(read_weights(weights), config, what=str(weights))


def write_open_clip(model: CLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder that open_clip loads as `local-dir:FOLDER`.

    Raises:
        ConfigError: open_clip does not support a feature of the model; the message names it.
    """
    config = model.config
    check_open_clip(config)
    weights = to_theirs(
        {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, openai_names(config)
    )
    if is_siglip(config):  # open_clip's class for models with an image tower of timm has a module for the text tower.
        is_text = [name for name in weights if not name.startswith(("visual.", "logit_"))]
        weights |= {f"text.{name}": weights.pop(name) for name in is_text}
    save_file(weights, folder / _WEIGHTS[0])
    write_tokenizer_files(tokenizer, folder)
    if config.text.tokenizer != "clip-bpe":
        write_own_tokenizer(tokenizer, config.text.tokenizer, folder)
    pixels = config.pixels
    content = {
        "model_cfg": _model_cfg(config),
        "preprocess_cfg": {
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "interpolation": pixels.interpolation,
            "resize_mode": "shortest",
        },
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(
    model: Mapping[str, Any], pixels: Mapping[str, Any], *, own_tokenizer: tuple[TokenizerKind, Path] | None = None
) -> CLIPConfig:
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias", "custom_text"}
    known |= {"nonscalar_logit_scale", "output_dict"}
    _refuse_unknown("model_cfg", set(model) - known)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    if "embed_dim" not in model:
        raise ConfigError("model_cfg has no embed_dim")
    return CLIPConfig(
        embed_dim=model["embed_dim"],
        image=_image_config(_object(model, "vision_cfg"), activation),
        text=_text_config(_object(model, "text_cfg"), activation, own_tokenizer[0] if own_tokenizer else "clip-bpe"),
        pixels=_pixel_config(pixels),
        init_logit_bias=None if model.get("init_logit_bias") is None else float(model["init_logit_bias"]),
    )


def _object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object of the file without nulls, which stand for defaults."""
    found = content.get(name, {} if name == "preprocess_cfg" else None)
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is {found!r:.40}, not an object")
    return {key: value for key, value in found.items() if value is not None}


def _image_config(vision: Mapping[str, Any], activation: str) -> ViTConfig | ResNetConfig:
    if vision.get("timm_model_name"):
        return _timm_config(vision)
    known = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "pool_type"}
    _check("vision_cfg", vision, known | {"final_ln_after_pool", "act_kwargs", "timm_model_name"}, _VISION)
    for name in ("width", "head_width"):
        if not isinstance(vision.get(name, 64), int) or vision.get(name, 64) < 1:
            raise ConfigError(f"vision_cfg has {name} {vision[name]!r}, which is not a positive integer")
    layers, width, head_width = vision.get("layers", 12), vision.get("width", 768), vision.get("head_width", 64)
    image_px = vision.get("image_size", 224)
    if isinstance(layers, list | tuple):
        plain = {"kind": "resnet", "layers": layers, "width": width, "heads": width * 32 // head_width}
        return from_plain(ResNetConfig, {**plain, "image_px": image_px}, what="vision_cfg")
    pool_type, norm_last = vision.get("pool_type", "tok"), vision.get("final_ln_after_pool", False)
    if (pool_type, norm_last) not in {("tok", False), ("tok", True), ("avg", True)}:
        raise ConfigError(
            f"vision_cfg has pool_type {pool_type!r} and final_ln_after_pool {norm_last}, which Diptych does not support"
        )
    plain = {
        "image_px": image_px,
        "patch_px": vision.get("patch_size", 16),
        "width": width,
        "layers": layers,
        "heads": width // head_width,
        "mlp_ratio": vision.get("mlp_ratio", 4.0),
        "activation": _activation(vision, activation),
        "pooling": "cls" if pool_type == "tok" else "mean",
        "patch_dropout": vision.get("patch_dropout", 0.0),
    }
    return from_plain(ViTConfig, plain, what="vision_cfg")


def _timm_config(vision: Mapping[str, Any]) -> ViTConfig:
    """Return the config of an image tower of timm, which open_clip's config only names."""
    name = vision["timm_model_name"]
    tower = timm_tower(name) if isinstance(name, str) else None
    if tower is None:
        raise ConfigError(f"vision_cfg has timm_model_name {name!r}, which Diptych does not support")
    only = {"timm_pool": "map", "timm_proj": "none", "image_size": tower.image_px}
    different = [f"{key} {vision.get(key)!r}" for key, value in only.items() if vision.get(key) != value]
    if different:
        raise ConfigError(f"vision_cfg has {', '.join(different)}, which Diptych does not support with {name}")
    return tower


def _activation(tower: Mapping[str, Any], activation: str) -> str:
    options = tower.get("act_kwargs")
    if options in (None, {}, {"approximate": "none"}):
        return activation
    if options == {"approximate": "tanh"} and activation == "gelu":
        return "gelu_tanh"
    raise ConfigError(f"a tower has act_kwargs {options!r} with {activation}, which Diptych does not support")


def _text_config(text: Mapping[str, Any], activation: str, kind: TokenizerKind) -> TextConfig:
    known = {
        "context_length",
        "width",
        "heads",
        "layers",
        "mlp_ratio",
        "pool_type",
        "final_ln_after_pool",
        "act_kwargs",
    }
    plain = {name: text[name] for name in ("context_length", "width", "heads", "layers", "mlp_ratio") if name in text}
    plain |= {
        "tokenizer": kind,
        "vocab_size": text.get("vocab_size", 49408),
        "activation": _activation(text, activation),
    }
    only = (
        _TEXT if kind == "clip-bpe" else {**_TEXT, "vocab_size": plain["vocab_size"], "hf_tokenizer_name": _TOKENIZER}
    )
    if all(text.get(name) == value for name, value in _SIGLIP_TEXT.items()):
        _check("text_cfg", text, known, {**only, **_SIGLIP_TEXT})
        return from_plain(TextConfig, {**plain, "is_causal": False, "layout": "siglip"}, what="text_cfg")
    _check("text_cfg", text, known, only)
    end_id = 49407 if kind == "clip-bpe" else END
    if text.get("pool_type", "argmax") not in ({"argmax", "eos"} if kind == "clip-bpe" else {"eos"}):
        raise ConfigError(f"text_cfg has pool_type {text.get('pool_type')!r}, which Diptych does not support")
    if text.get("pool_type") == "eos" and text.get("eos_id", 2) != end_id:
        whose = "only CLIP's" if kind == "clip-bpe" else "only that of this tokenizer"
        raise ConfigError(f"text_cfg has eos_id {text.get('eos_id', 2)}; Diptych supports {whose}, {end_id}")
    return from_plain(TextConfig, plain, what="text_cfg")


def _pixel_config(pixels: Mapping[str, Any]) -> PixelConfig:
    _check(
        "preprocess_cfg", pixels, {"mean", "std", "interpolation", "size"}, {"resize_mode": "shortest", "mode": "RGB"}
    )
    plain = {name: pixels[name] for name in ("mean", "std", "interpolation") if name in pixels}
    return from_plain(PixelConfig, plain, what="preprocess_cfg")


def _check(where: str, given: Mapping[str, Any], known: set[str], only: Mapping[str, Any]) -> None:
    """Raise an error that names the first option that Diptych does not support.

    Args:
        where: name of the object, for messages.
        given: the options of the file.
        known: options with any value.
        only: options with a single supported value.
    """
    for name, value in given.items():
        if name in only and value != only[name] and value:
            raise ConfigError(f"{where} has {name} {value!r}, which Diptych does not support")
    _refuse_unknown(where, set(given) - known - set(only) - _HARMLESS - {"fill_color"})


def _refuse_unknown(where: str, names: set[str]) -> None:
    if names:
        raise ConfigError(f"{where} has {', '.join(sorted(names))}, which Diptych does not know")


def _model_cfg(config: CLIPConfig) -> dict[str, Any]:
    bias = {} if config.init_logit_bias is None else {"init_logit_bias": config.init_logit_bias}
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.text.activation == "quick_gelu",
        **({"custom_text": True} if is_siglip(config) else {}),
        "vision_cfg": _vision_cfg(config),
        "text_cfg": _text_cfg(config.text),
        **bias,
    }


def _vision_cfg(config: CLIPConfig) -> dict[str, Any]:
    image = config.image
    assert not isinstance(image, ConvNetConfig)  # `check_open_clip` rejects it.
    vision: dict[str, Any] = {"image_size": _plain(image.image_px), "width": image.width}
    if isinstance(image, ResNetConfig):
        vision |= {"layers": list(image.layers), "head_width": 32 * image.width // image.heads, "patch_size": None}
    elif image.layout == "siglip":
        timm = {
            "timm_model_name": timm_name(image),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        }
        vision = {"image_size": image.image_px, **timm}
    else:
        vision |= {
            "layers": image.layers,
            "head_width": image.width // image.heads,
            "mlp_ratio": _their_ratio(image.width, image.mlp_ratio),
            "patch_size": _plain(image.patch_px),
            "patch_dropout": image.patch_dropout,
            **_act_kwargs(image),
            **({"pool_type": "avg", "final_ln_after_pool": True} if image.pooling == "mean" else {}),
        }
    return vision


def _text_cfg(text: TextConfig) -> dict[str, Any]:
    names = ("context_length", "vocab_size", "width", "heads", "layers")
    own_tokenizer = {} if text.tokenizer == "clip-bpe" else {"hf_tokenizer_name": _TOKENIZER}
    if text.layout == "siglip":
        pooling = _SIGLIP_TEXT
    else:
        pooling = {} if text.tokenizer == "clip-bpe" else {"pool_type": "eos", "eos_id": END}
    return {
        **{name: getattr(text, name) for name in names},
        "mlp_ratio": _their_ratio(text.width, text.mlp_ratio),
        **_act_kwargs(text),
        **pooling,
        **own_tokenizer,
    }


def _act_kwargs(tower: ViTConfig | TextConfig) -> dict[str, Any]:
    return {"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {}


def _their_ratio(width: int, ratio: float) -> float:
    """Return an MLP ratio for which open_clip's `int(width * ratio)` gives the same hidden width as Diptych's rounding."""
    while int(width * ratio) < hidden_width(width, ratio):
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _plain(pixels: int | tuple[int, int]) -> int | list[int]:
    return pixels if isinstance(pixels, int) else list(pixels)
