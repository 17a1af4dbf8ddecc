"""Read and write open_clip's model folders (`local-dir:`): `open_clip_config.json` and weights in OpenAI's naming."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from diptych.bundle.foreign_tokenizer import write_own_tokenizer
from diptych.bundle.libraries import check_open_clip, is_siglip
from diptych.bundle.open_clip_config import open_clip_config
from diptych.bundle.open_clip_text import TOKENIZER
from diptych.bundle.openai import load_openai, openai_names
from diptych.bundle.renaming import to_theirs
from diptych.bundle.siglip_names import timm_name
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json
from diptych.images.transforms import PixelConfig
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ConvNetConfig, ResNetConfig, TextConfig, TimmConfig, ViTConfig
from diptych.models.layers import hidden_width
from diptych.tokenizers.hugging_face import write_tokenizer_files
from diptych.tokenizers.protocol import END, Tokenizer

CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")
_OLDER_WEIGHTS = ("open_clip_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin", "model.pth")
_RESIZE_MODES = {"crop": "shortest", "squash": "squash", "pad": "longest"}
_POOL_TYPES = {"eot": "last", "cls": "first", "end": "argmax"}
"""open_clip's name for each pooling of a text tower without a causal mask."""


def read_open_clip(folder: Path) -> CLIP:
    """Return the model in an open_clip folder.

    Raises:
        BundleError: a file is missing or damaged, or the model has a feature that Diptych does not support; the message names
            it.
    """
    config = read_open_clip_config(folder)
    weights = next((folder / name for name in (*_WEIGHTS, *_OLDER_WEIGHTS) if (folder / name).is_file()), None)
    if weights is None:
        raise BundleError(f"{folder}: holds no weights; open_clip's are {_WEIGHTS[0]} or {_WEIGHTS[1]}")
    return load_openai(read_weights(weights), config, what=str(weights))


def read_open_clip_config(folder: Path) -> CLIPConfig:
    """Return the config of the model in an open_clip folder, without reading its weights.

    Raises:
        BundleError: a file is missing or damaged, or the model has a feature that Diptych does not support; the message names
            it.
    """
    path = folder / CONFIG
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError("holds no JSON object")
        return open_clip_config(content, folder)
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"{path}: is not a config of open_clip ({type(error).__name__}: {error})") from None
    except ConfigError as error:
        raise BundleError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def write_open_clip(model: CLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder that open_clip loads as `local-dir:FOLDER`.

    Raises:
        ConfigError: open_clip does not support a feature of the model; the message names it.
    """
    config = model.config
    check_open_clip(config)
    weights: Mapping[str, Tensor] = to_theirs(
        {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, openai_names(config)
    )
    if _has_text_module(config):
        weights = {
            name if name.startswith(("visual.", "logit_")) else f"text.{name}": tensor
            for name, tensor in weights.items()
        }
    save_file(dict(weights), folder / _WEIGHTS[0])
    write_tokenizer_files(tokenizer, folder)
    if config.text.tokenizer != "clip-bpe":
        write_own_tokenizer(tokenizer, config.text.tokenizer, folder)
    content = {"model_cfg": _model_cfg(config), "preprocess_cfg": _preprocess_cfg(config.pixels)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _has_text_module(config: CLIPConfig) -> bool:
    """Whether open_clip needs its class with a separate text module, in which the text tower has its own projection."""
    text = config.own_text
    return is_siglip(config) or text.pooling == "appended" or not text.has_projection or bool(text.has_projection_bias)


def _model_cfg(config: CLIPConfig) -> dict[str, Any]:
    bias = {} if config.init_logit_bias is None else {"init_logit_bias": config.init_logit_bias}
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.own_text.activation == "quick_gelu",
        **({"custom_text": True} if _has_text_module(config) else {}),
        "vision_cfg": _vision_cfg(config),
        "text_cfg": _text_cfg(config.own_text),
        **bias,
    }


def _preprocess_cfg(pixels: PixelConfig) -> dict[str, Any]:
    return {
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "interpolation": pixels.interpolation,
        "resize_mode": _RESIZE_MODES[pixels.resize],
        **({"fill_color": pixels.pad_color[0]} if pixels.resize == "pad" else {}),
    }


def _vision_cfg(config: CLIPConfig) -> dict[str, Any]:
    image = config.image
    assert not isinstance(image, ConvNetConfig | TimmConfig)  # `check_open_clip` rejects it.
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
            **({} if image.has_norm_pre else {"no_ln_pre": True}),
            **_act_kwargs(image),
            **_norm_kwargs(image),
            **_image_pooling(image),
        }
    return vision


def _image_pooling(image: ViTConfig) -> dict[str, Any]:
    if image.pooling == "coca":
        heads = image.pool_heads or image.heads
        return {"attentional_pool": True, "attn_pooler_queries": 1, "attn_pooler_heads": heads}
    return {"pool_type": "avg", "final_ln_after_pool": not image.norms_before_mean} if image.pooling == "mean" else {}


def _text_cfg(text: TextConfig) -> dict[str, Any]:
    names = ("context_length", "vocab_size", "width", "heads", "layers")
    return {
        **{name: getattr(text, name) for name in names},
        "mlp_ratio": _their_ratio(text.width, text.mlp_ratio),
        **_act_kwargs(text),
        **_text_pooling(text),
        **_text_projection(text),
        **_norm_kwargs(text),
        **_their_tokenizer(text),
    }


def _text_pooling(text: TextConfig) -> dict[str, Any]:
    if text.layout == "siglip":
        return {"no_causal_mask": True, "pool_type": _POOL_TYPES[text.pooling]}
    if text.pooling == "appended":
        return {"embed_cls": True}
    if text.tokenizer == "clip-bpe":
        return {}
    return {"pool_type": "eos", "eos_id": text.preparation.end_id if text.tokenizer == "pretrained" else END}


def _text_projection(text: TextConfig) -> dict[str, Any]:
    if not text.has_projection:
        return {"proj_type": "none"}
    has_bias = text.layout == "siglip" if text.has_projection_bias is None else text.has_projection_bias
    return {"proj_bias": True} if has_bias else {}


def _their_tokenizer(text: TextConfig) -> dict[str, Any]:
    if text.tokenizer == "clip-bpe":
        return {}
    clean = text.preparation.clean
    cleaning = {} if text.tokenizer != "pretrained" or clean == "none" else {"tokenizer_kwargs": {"clean": clean}}
    return {"hf_tokenizer_name": TOKENIZER, **cleaning}


def _act_kwargs(tower: ViTConfig | TextConfig) -> dict[str, Any]:
    return {"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {}


def _norm_kwargs(tower: ViTConfig | TextConfig) -> dict[str, Any]:
    default = 1e-6 if tower.layout == "siglip" else 1e-5
    eps = default if tower.norm_eps is None else tower.norm_eps
    return {} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}


def _their_ratio(width: int, ratio: float) -> float:
    """Return an MLP ratio for which open_clip's `int(width * ratio)` gives the same hidden width as Diptych's rounding."""
    while int(width * ratio) < hidden_width(width, ratio):
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _plain(pixels: int | tuple[int, int]) -> int | list[int]:
    return pixels if isinstance(pixels, int) else list(pixels)
