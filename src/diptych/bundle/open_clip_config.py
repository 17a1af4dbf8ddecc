"""Convert open_clip's `model_cfg` and `preprocess_cfg` to a Diptych config.

An unsupported option that changes the model is an error that names the option. Training options are ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.bundle.open_clip_options import (
    BLOCKS,
    activation_of,
    check_options,
    norm_eps_of,
    object_of,
    refuse_unknown,
)
from diptych.bundle.open_clip_text import text_config
from diptych.bundle.open_clip_towers import timm_tower_config
from diptych.bundle.siglip_names import timm_tower
from diptych.core.errors import ConfigError
from diptych.core.settings import from_plain
from diptych.images.transforms import OPENAI_MEAN, OPENAI_STD, PixelConfig, height_width
from diptych.models.config import CLIPConfig, ImageConfig, ResNetConfig, ViTConfig

_MODEL = {
    "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias", "custom_text",
    "nonscalar_logit_scale", "output_dict", "multimodal_cfg",
}  # fmt: skip
"""Options of a model. `multimodal_cfg` is CoCa's caption decoder, which embeddings do not need."""
_RESIZE = {"shortest": "crop", "squash": "squash", "longest": "pad"}
POOL_HEADS = 8
"""open_clip's default number of heads in CoCa's pooling."""


def open_clip_config(content: Mapping[str, Any], folder: Path | None = None) -> CLIPConfig:
    """Return the config of a model.

    Args:
        content: the content of `open_clip_config.json`: `model_cfg` and, unless it has open_clip's defaults, `preprocess_cfg`.
        folder: the folder of the model, for tokenizer files; None if the model uses CLIP's tokenizer.

    Raises:
        ConfigError: the model has a feature that Diptych does not support; the message names it.
        BundleError: a tokenizer file is missing or damaged.
    """
    model, pixels = object_of(content, "model_cfg"), object_of(content, "preprocess_cfg")
    refuse_unknown("model_cfg", set(model) - _MODEL)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    if "embed_dim" not in model:
        raise ConfigError("model_cfg has no embed_dim")
    image = _image_config(model, activation)
    plain = {
        "embed_dim": model["embed_dim"],
        "image": image,
        "text": text_config(object_of(model, "text_cfg"), activation, folder=folder, embed_dim=int(model["embed_dim"])),
        "pixels": _pixel_config(pixels, image),
        "init_logit_bias": None if model.get("init_logit_bias") is None else float(model["init_logit_bias"]),
    }
    return from_plain(CLIPConfig, plain, what="model_cfg")


def _image_config(model: Mapping[str, Any], activation: str) -> ImageConfig:
    vision = object_of(model, "vision_cfg")
    if vision.get("timm_model_name"):
        return _timm_config(model["vision_cfg"])
    known = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "pool_type"}
    known |= {"final_ln_after_pool", "act_kwargs", "norm_kwargs", "timm_model_name", "no_ln_pre", "ls_init_value"}
    check_options("vision_cfg", vision, known | {"attentional_pool", "pos_embed_type"}, BLOCKS)
    for name in ("width", "head_width"):
        if not isinstance(vision.get(name, 64), int) or vision.get(name, 64) < 1:
            raise ConfigError(f"vision_cfg has {name} {vision[name]!r}, which is not a positive integer")
    width, head_width = vision.get("width", 768), vision.get("head_width", 64)
    shared = {"image_px": vision.get("image_size", 224), "width": width}
    if isinstance(vision.get("layers"), list | tuple):
        plain = {"kind": "resnet", "layers": vision["layers"], "heads": width * 32 // head_width}
        return from_plain(ResNetConfig, {**shared, **plain}, what="vision_cfg")
    if vision.get("pos_embed_type", "learnable") not in ("learnable", "sin_cos_2d"):  # Both are in the weights.
        raise ConfigError(f"vision_cfg has pos_embed_type {vision['pos_embed_type']!r}, which Diptych does not support")
    plain = {
        "patch_px": vision.get("patch_size", 16),
        "layers": vision.get("layers", 12),
        "heads": width // head_width,
        "mlp_ratio": vision.get("mlp_ratio", 4.0),
        "activation": activation_of(vision, activation),
        "has_norm_pre": not vision.get("no_ln_pre", False),
        "patch_dropout": vision.get("patch_dropout", 0.0),
        **_image_pooling(vision),
    }
    return from_plain(ViTConfig, {**shared, **plain, **norm_eps_of("vision_cfg", vision)}, what="vision_cfg")


def _image_pooling(vision: Mapping[str, Any]) -> dict[str, Any]:
    pool_type, is_last = vision.get("pool_type", "tok"), bool(vision.get("final_ln_after_pool", False))
    if vision.get("attentional_pool"):
        if vision["attentional_pool"] is not True or pool_type != "tok":
            raise ConfigError(
                f"vision_cfg has attentional_pool {vision['attentional_pool']!r} with pool_type {pool_type!r}; Diptych "
                "supports only CoCa's pooling, true with 'tok'"
            )
        return {"pooling": "coca", "pool_heads": vision.get("attn_pooler_heads", POOL_HEADS)}
    if pool_type == "tok":
        return {"pooling": "cls"}
    if pool_type == "avg":
        return {"pooling": "mean", "norms_before_mean": not is_last}
    raise ConfigError(
        f"vision_cfg has pool_type {pool_type!r}, which Diptych does not support; it supports 'tok' and 'avg'"
    )


def _timm_config(vision: Mapping[str, Any]) -> ImageConfig:
    """Return the config of a timm image tower, which open_clip's config only names."""
    name = vision["timm_model_name"]
    if not isinstance(name, str):
        raise ConfigError(f"vision_cfg has timm_model_name {name!r}, which is not a string")
    tower = timm_tower(name)
    if tower is not None and (vision.get("timm_pool"), vision.get("timm_proj")) == ("map", "none"):
        if vision.get("image_size", tower.image_px) != tower.image_px:
            raise ConfigError(
                f"vision_cfg has image_size {vision['image_size']!r}, but {name} reads {tower.image_px} px"
            )
        return tower
    return timm_tower_config(vision)  # Nulls are kept: `timm_proj: null` is not the default.


def _pixel_config(pixels: Mapping[str, Any], image: ImageConfig) -> PixelConfig:
    known = {"mean", "std", "interpolation", "size", "resize_mode", "fill_color"}
    check_options("preprocess_cfg", pixels, known, {"mode": "RGB"})
    mode = pixels.get("resize_mode", "shortest")
    if mode not in _RESIZE:
        raise ConfigError(f"preprocess_cfg has resize_mode {mode!r}; open_clip has {', '.join(_RESIZE)}")
    height, width = height_width(image.image_px)
    interpolation = pixels.get("interpolation", "bicubic")
    if interpolation == "random" or (mode == "shortest" and height != width):
        interpolation = "bicubic"  # open_clip ignores the setting in this case.
    fill = pixels.get("fill_color", 0)
    plain = {
        "mean": _channels(pixels.get("mean", OPENAI_MEAN)),
        "std": _channels(pixels.get("std", OPENAI_STD)),
        "interpolation": interpolation,
        "resize": _RESIZE[mode],
        **({"pad_color": _channels(fill)} if mode == "longest" else {}),
    }
    return from_plain(PixelConfig, plain, what="preprocess_cfg")


def _channels(value: Any) -> Any:
    """Return one value per channel; open_clip also accepts a single number."""
    return [value] * 3 if isinstance(value, int | float) else value
