"""Features of a model that other libraries do not support, so that `diptych export` refuses the model, by library."""

from dataclasses import replace
from typing import get_args

from diptych.bundle.siglip_names import timm_name
from diptych.core.errors import ConfigError
from diptych.core.program import command
from diptych.images.transforms import height_width
from diptych.models.config import (
    Activation,
    CLIPConfig,
    ConvNetConfig,
    ImageConfig,
    ResNetConfig,
    TextConfig,
    TextTowerConfig,
    TimmConfig,
    TransformersConfig,
    ViTConfig,
)
from diptych.tokenizers.preparation import SIGLIP


def check_open_clip(config: CLIPConfig) -> None:
    """Check that open_clip supports a model.

    Raises:
        ConfigError: open_clip does not support a feature of the model. The message names every such feature and suggests an
            ONNX export.
    """
    _refuse("open_clip", open_clip_reasons(config))


def check_hugging_face(config: CLIPConfig) -> None:
    """Check that `transformers` supports a model, as `CLIPModel` or, for SigLIP's layout, as `SiglipModel`.

    Raises:
        ConfigError: the class does not support a feature of the model. The message names every such feature and suggests an
            ONNX export.
    """
    _refuse(f"Hugging Face's {'SiglipModel' if is_siglip(config) else 'CLIPModel'}", hugging_face_reasons(config))


def check_openai_names(config: CLIPConfig, *, what: str) -> None:
    """Check that OpenAI's names can represent a model from its weights alone, since such a file contains no config.

    Args:
        config: the config of the model.
        what: name of the format, which starts the message.

    Raises:
        ConfigError: the format does not support a feature of the model; the message names every such feature.
    """
    reasons = openai_reasons(config)
    if reasons:
        raise ConfigError(f"{what} does not support {', '.join(reasons)}")


def library_reasons(config: CLIPConfig) -> dict[str, list[str]]:
    """Return why a model cannot be loaded, by format of `diptych export --to`. The list is empty if it can be loaded.

    ONNX Runtime loads every model: each image tower, text tower and pooling has a graph.

    >>> library_reasons(CLIPConfig(text=TextConfig(tokenizer="clip-bpe", vocab_size=49408)))
    {'onnx': [], 'hugging-face': [], 'open-clip': []}
    """
    return {"onnx": [], "hugging-face": hugging_face_reasons(config), "open-clip": open_clip_reasons(config)}


def is_siglip(config: CLIPConfig) -> bool:
    """Whether a tower has SigLIP's layout."""
    return "siglip" in {_layout(config.image), _text_layout(config.text)}


def open_clip_reasons(config: CLIPConfig) -> list[str]:
    """Return the features of a model that open_clip does not support; empty if it supports the model.

    >>> open_clip_reasons(CLIPConfig(image=ConvNetConfig(), text=TextConfig(is_causal=False)))
    ['its convolutional network', 'its bidirectional text tower']
    """
    text = config.text
    if isinstance(text, TransformersConfig):
        return [*_open_clip_image(config), *_third_party(config)[-1:]]
    towers = [*_open_clip_image(config), *_open_clip_text(text), *_two_activations(config.image, text)]
    return towers + _open_clip_pixels(config)


def hugging_face_reasons(config: CLIPConfig) -> list[str]:
    """Return the features of a model that `CLIPModel` and `SiglipModel` do not support; empty if one supports the model.

    >>> hugging_face_reasons(CLIPConfig(image=ViTConfig(pooling="mean"), text=TextConfig(tokenizer="hashing")))
    ['its mean pooling', 'its hashing tokenizer']
    """
    image, text = config.image, config.text
    if isinstance(text, TransformersConfig):
        return _third_party(config)
    reasons = _no_vit(image)
    if isinstance(image, ViTConfig):
        (height, width), (patch_height, patch_width) = height_width(image.image_px), height_width(image.patch_px)
        is_square = height == width and patch_height == patch_width
        reasons += [] if is_square else ["its pictures or patches that are not square"]
        expected = "attention" if is_siglip(config) else "cls"
        reasons += [f"its {image.pooling} pooling"] if image.pooling != expected else []
    if is_siglip(config):
        reasons += ["SigLIP's layout in only one of its towers"] if _layout(image) != text.layout else []
        reasons += ["its causal text tower"] if text.is_causal else []
        reasons += ["its lack of a logit bias"] if config.init_logit_bias is None else []
    else:
        reasons += [] if text.is_causal else ["its bidirectional text tower"]
        reasons += ["its logit bias"] if config.init_logit_bias is not None else []
    reasons += ["the borders of its pictures"] if config.pixels.resize == "pad" else []
    return reasons + _unlike_layout(config.image, text) + _text_pooling(text) + _hugging_face_tokenizer(text)


def _hugging_face_tokenizer(text: TextConfig) -> list[str]:
    """`SiglipTokenizer`, which reads a sentencepiece model, has the text preparation of SigLIP and no other."""
    is_other = text.preparation != replace(SIGLIP, pad_id=text.preparation.pad_id)
    has_pieces = text.tokenizer == "sentencepiece"
    return [
        *_tokenizer(text),
        *(["a sentencepiece tokenizer without SigLIP's text preparation"] * (has_pieces and is_other)),
    ]


def _unlike_layout(image: ImageConfig, text: TextConfig) -> list[str]:
    """Return reasons against Hugging Face's classes: settings that they lack, because the layout determines them."""
    has_norm = not isinstance(image, ViTConfig) or image.layout == "siglip" or image.has_norm_pre
    reasons = [] if has_norm else ["its lack of a norm before the first block"]
    if not text.has_projection:
        return [*reasons, "its lack of a text projection"]
    has_bias = text.layout == "siglip"
    is_plain = text.has_projection_bias in (None, has_bias)
    return reasons + ([] if is_plain else [f"a text projection with{'out' * has_bias} a bias"])


def openai_reasons(config: CLIPConfig) -> list[str]:
    """Return the features of a model that OpenAI's weights files cannot represent."""
    image, text = config.image, config.text
    if isinstance(text, TransformersConfig):
        return _third_party(config)
    reasons = [] if isinstance(image, ResNetConfig) else _no_vit(image)
    if isinstance(image, ViTConfig):
        reasons += [f"its {image.pooling} pooling"] if image.pooling in ("attention", "coca") else []
        if image.activation != text.activation:
            reasons.append(f"its two activations, {image.activation} and {text.activation}")
    reasons += ["SigLIP's layout"] if is_siglip(config) else []
    reasons += [] if text.is_causal else ["its bidirectional text tower"]
    reasons += _text_pooling(text)
    reasons += [] if text.tokenizer == "clip-bpe" else [f"its {text.tokenizer} tokenizer"]
    return reasons + (["its activation gelu_tanh"] if text.activation == "gelu_tanh" else [])


def _refuse(library: str, reasons: list[str]) -> None:
    if reasons:
        export = command("export", "BUNDLE", "--to", "onnx")
        raise ConfigError(
            f"{library} does not support {', '.join(reasons)}; every model can be exported with `{export}`"
        )


def _layout(image: ImageConfig) -> str:
    return image.layout if isinstance(image, ViTConfig) else "clip"


def _text_layout(text: TextTowerConfig) -> str:
    return text.layout if isinstance(text, TextConfig) else "clip"


def _third_party(config: CLIPConfig) -> list[str]:
    """Return reasons for towers of other libraries, which these formats cannot express."""
    text = ["its transformers text tower"] if isinstance(config.text, TransformersConfig) else []
    return [*(_no_vit(config.image) if isinstance(config.image, TimmConfig) else []), *text]


def _no_vit(image: ImageConfig) -> list[str]:
    match image:
        case TimmConfig():
            return [f"its timm image tower {image.name}"]
        case ConvNetConfig():
            return ["its convolutional network"]
        case ResNetConfig():
            return ["its ResNet"]
        case _:
            return ["its convolutional stem"] if image.stem == "conv" else []


def _open_clip_image(config: CLIPConfig) -> list[str]:
    image = config.image
    if isinstance(image, ResNetConfig):
        is_square = isinstance(image.image_px, int)
        return [] if is_square else ["a ResNet on pictures that are not square"]
    reasons = _no_vit(image)
    if isinstance(image, ConvNetConfig | TimmConfig) or reasons:
        return reasons
    if image.layout == "siglip":
        return [*([] if timm_name(image) else [_unlike_timm(image)]), *_other_eps(image)]
    return [f"its {image.pooling} pooling"] if image.pooling == "attention" else []


def _other_eps(image: ViTConfig) -> list[str]:
    """Return a reason if the epsilon of the norms differs, because open_clip's config does not contain it for timm towers."""
    return [] if image.norm_eps in (None, 1e-6) else [f"the epsilon {image.norm_eps:g} of its image tower's norms"]


def _open_clip_pixels(config: CLIPConfig) -> list[str]:
    pixels, (height, width) = config.pixels, height_width(config.image.image_px)
    reasons = []
    if pixels.interpolation not in ("bicubic", "bilinear"):
        reasons.append(f"its {pixels.interpolation} interpolation")
    elif pixels.interpolation != "bicubic" and pixels.resize == "crop" and height != width:
        reasons.append(f"{pixels.interpolation} interpolation of images that are not square")
    if pixels.resize_px is not None:
        reasons.append(f"its resize to {pixels.resize_px} px, which is not the size of the input")
    if pixels.resize == "pad" and len(set(pixels.pad_color)) > 1:
        reasons.append(f"borders of the color {pixels.pad_color}, which is not a gray")
    return reasons


def _unlike_timm(image: ViTConfig) -> str:
    """Why open_clip does not support an image tower in SigLIP's layout. It supports only those that timm has, by name."""
    for activation in get_args(Activation):
        if timm_name(replace(image, activation=activation)):
            return f"its image tower's {image.activation} (in SigLIP's layout and of this size, it has {activation})"
    return "its image tower in SigLIP's layout, of a size that timm does not have"


def _open_clip_text(text: TextConfig) -> list[str]:
    preparation = text.preparation if text.tokenizer == "pretrained" else None
    if text.layout == "siglip":
        reasons = ["its causal text tower in SigLIP's layout"] if text.is_causal else []
        poolings = {"eot", "cls", "end"}
    else:
        reasons = [] if text.is_causal else ["its bidirectional text tower"]
        poolings = {"eot", "appended"}
        if preparation is not None and text.pooling == "eot" and preparation.end_id is None:
            reasons.append("its texts without an end token")
    if text.pooling not in poolings:
        reasons += _text_pooling(text)
    if text.pooling == "appended" and preparation is not None and preparation.pad_id != 0:
        reasons.append(f"its padding with id {preparation.pad_id} before an appended token")
    reasons += ["its sentencepiece tokenizer"] if text.tokenizer == "sentencepiece" else []
    return reasons + _tokenizer(text)


def _two_activations(image: ImageConfig, text: TextConfig) -> list[str]:
    """One switch of open_clip selects QuickGELU for both towers, except for towers of timm."""
    if not isinstance(image, ViTConfig) or image.layout == "siglip":
        return []
    is_quick = [tower.activation == "quick_gelu" for tower in (image, text)]
    return [f"its two activations, {image.activation} and {text.activation}"] if len(set(is_quick)) > 1 else []


def _text_pooling(text: TextConfig) -> list[str]:
    return [] if text.pooling == "eot" else [f"its text tower's {text.pooling} pooling"]


def _tokenizer(text: TextConfig) -> list[str]:
    """A tokenizer that Hugging Face's format cannot express. open_clip reads the same format."""
    return ["its hashing tokenizer"] if text.tokenizer == "hashing" else []
