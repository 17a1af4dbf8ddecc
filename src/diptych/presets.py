"""Presets: named model architectures."""

from dataclasses import replace
from typing import Any

from diptych.core.errors import ConfigError, unknown_name
from diptych.images.resample import Interpolation
from diptych.images.transforms import PixelConfig
from diptych.models.config import CLIPConfig, ConvNetConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.tokenizers.preparation import SIGLIP, SIGLIP_2


def _clip_text(**settings: Any) -> TextConfig:
    """Return CLIP's text tower: 12 causal layers of width 512, BPE tokens, context 77 (Radford et al. 2021, sec. 2.4)."""
    return TextConfig(tokenizer="clip-bpe", vocab_size=49408, **settings)


def _shapes(width: int, heads: int, layers: int) -> CLIPConfig:
    return CLIPConfig(
        embed_dim=width,
        image=ViTConfig(image_px=64, patch_px=8, width=width, layers=layers, heads=heads, pooling="mean"),
        text=TextConfig(
            tokenizer="character", vocab_size=64, context_length=64, width=width, layers=layers, heads=heads
        ),
    )


def _drawings(**settings: Any) -> CLIPConfig:
    image = ViTConfig(image_px=64, patch_px=16, stem="conv", width=64, layers=2, heads=4, pooling="mean")
    text = TextConfig(width=64, layers=2, heads=4, **settings)
    return CLIPConfig(embed_dim=64, image=image, text=text, init_temperature=0.05)


def _convnet(image: ConvNetConfig) -> CLIPConfig:
    text = TextConfig(vocab_size=4000, context_length=48, width=256, layers=2, heads=4, is_causal=False, pooling="mean")
    return CLIPConfig(embed_dim=256, image=image, text=text)


_SIGLIP_SIZES = {
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giant": (1536, 40, 16, 6144),
}
"""Width, layers, heads and MLP width of SigLIP's towers. `giant` has the text tower of `so400m`."""
_T5_ENGLISH = {
    "vocab_size": 32_000,
    "preparation": SIGLIP,
}
_T5_MULTILINGUAL = {**_T5_ENGLISH, "vocab_size": 250_000}
_GEMMA = {
    "vocab_size": 256_000,
    "preparation": SIGLIP_2,
}


def _siglip_tower(size: str) -> dict[str, Any]:
    width, layers, heads, hidden = _SIGLIP_SIZES[size]
    sizes = {"width": width, "layers": layers, "heads": heads, "mlp_ratio": hidden / width}
    return {**sizes, "layout": "siglip", "activation": "gelu_tanh"}


def _siglip(size: str, patch_px: int, image_px: int, text: dict[str, Any], interpolation: Interpolation) -> CLIPConfig:
    """Return a SigLIP model with its original vocabulary, text preparation and image transform (Zhai et al. 2023)."""
    image = ViTConfig(image_px=image_px, patch_px=patch_px, pooling="attention", **_siglip_tower(size))
    tower = {**_siglip_tower("so400m" if size == "giant" else size), **text}
    halves = (0.5, 0.5, 0.5)
    return CLIPConfig(
        embed_dim=image.width,
        image=image,
        text=TextConfig(tokenizer="pretrained", is_causal=False, **{"context_length": 64, **tower}),
        pixels=PixelConfig(mean=halves, std=halves, resize="squash", interpolation=interpolation),
        init_temperature=0.1,
        init_logit_bias=-10.0,
    )


PRESETS: dict[str, CLIPConfig] = {
    # ResNets (table 19) and vision transformers (table 20) of Radford et al. 2021.
    "rn50": CLIPConfig(embed_dim=1024, image=ResNetConfig(), text=_clip_text()),
    "rn101": CLIPConfig(embed_dim=512, image=ResNetConfig(layers=(3, 4, 23, 3)), text=_clip_text()),
    "rn50x4": CLIPConfig(
        embed_dim=640,
        image=ResNetConfig(image_px=288, layers=(4, 6, 10, 6), width=80, heads=40),
        text=_clip_text(width=640, heads=10),
    ),
    "rn50x16": CLIPConfig(
        embed_dim=768,
        image=ResNetConfig(image_px=384, layers=(6, 8, 18, 8), width=96, heads=48),
        text=_clip_text(width=768, heads=12),
    ),
    "rn50x64": CLIPConfig(
        embed_dim=1024,
        image=ResNetConfig(image_px=448, layers=(3, 15, 36, 10), width=128, heads=64),
        text=_clip_text(width=1024, heads=16),
    ),
    "vit-b-32": CLIPConfig(image=ViTConfig(patch_px=32), text=_clip_text()),
    "vit-b-16": CLIPConfig(image=ViTConfig(patch_px=16), text=_clip_text()),
    "vit-l-14": CLIPConfig(
        embed_dim=768,
        image=ViTConfig(patch_px=14, width=1024, layers=24, heads=16),
        text=_clip_text(width=768, heads=12),
    ),
    "vit-l-14-336": CLIPConfig(
        embed_dim=768,
        image=ViTConfig(image_px=336, patch_px=14, width=1024, layers=24, heads=16),
        text=_clip_text(width=768, heads=12),
    ),
    # From open_clip; not in the paper.
    "vit-h-14": CLIPConfig(
        embed_dim=1024,
        image=ViTConfig(patch_px=14, width=1280, layers=32, heads=16),
        text=_clip_text(width=1024, layers=24, heads=16),
    ),
    # SigLIP's layout (Zhai et al. 2023), with CLIP's BPE tokenizer instead of SentencePiece.
    "vit-b-16-siglip": CLIPConfig(
        embed_dim=768,
        image=ViTConfig(patch_px=16, pooling="attention", layout="siglip", activation="gelu_tanh"),
        text=_clip_text(
            context_length=64, width=768, heads=12, is_causal=False, layout="siglip", activation="gelu_tanh"
        ),
        pixels=PixelConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        init_temperature=0.1,
        init_logit_bias=-10.0,
    ),
    # 29 million parameters: trains overnight on a machine that is too small for the paper's models.
    "small": CLIPConfig(
        embed_dim=256,
        image=ViTConfig(patch_px=32, width=384, layers=6, heads=6),
        text=_clip_text(width=256, layers=6, heads=4),
    ),
    "flickr-vit-b-16": CLIPConfig(image=ViTConfig(patch_px=16), text=_clip_text(layers=8)),
    "bert-vit-b-16": CLIPConfig(image=ViTConfig(patch_px=16), text=_clip_text(is_causal=False, pooling="cls")),
    "cifar10-rn": CLIPConfig(
        image=ResNetConfig(image_px=32, layers=(2, 2, 2, 2), width=32, heads=16),
        text=_clip_text(layers=6),
        pixels=PixelConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
    "shapes-tiny": _shapes(256, 4, 6),
    "shapes-small": _shapes(384, 6, 8),
    "shapes-base": _shapes(512, 8, 12),
    "shapes-large": _shapes(768, 12, 24),
    # For `diptych demo`: drawings of 64 px and a vocabulary of a few dozen words.
    "shapes-demo": _drawings(vocab_size=512, context_length=32),
    # For the same drawings, with a character tokenizer.
    "shapes-character": _drawings(tokenizer="character", vocab_size=64, context_length=64),
    # For a few thousand photos, and for a few thousand images of 32 px.
    "photos-convnet": _convnet(ConvNetConfig()),
    "icons-convnet": _convnet(ConvNetConfig(image_px=32, stem_stride=2)),
    # For a few thousand photos, in an architecture that open_clip and Hugging Face load.
    "photos-vit": CLIPConfig(
        embed_dim=256,
        image=ViTConfig(image_px=96, patch_px=16, width=256, layers=6, heads=4),
        text=_clip_text(width=256, layers=6, heads=4),
    ),
    # For a few thousand photos, with a vision transformer.
    "photos-small": CLIPConfig(
        embed_dim=256,
        image=ViTConfig(image_px=64, patch_px=16, stem="conv", width=192, layers=4, heads=6, pooling="mean"),
        text=TextConfig(context_length=48, width=192, layers=3, heads=6),
    ),
}
"""Configs of all models by name."""

_SIGLIP = [("b", 16, 224), ("b", 16, 256), ("b", 16, 384), ("b", 16, 512), ("l", 16, 256), ("l", 16, 384)]
_SIGLIP_2 = [*_SIGLIP, ("b", 32, 256), ("l", 16, 512), ("so400m", 16, 256), ("so400m", 16, 384), ("so400m", 16, 512)]
_SO400M_14 = [("so400m", 14, 224), ("so400m", 14, 384)]
_GIANT = [("giant", 16, 256), ("giant", 16, 384)]
# The published models of Zhai et al. 2023 and Tschannen et al. 2025, with the interpolation in their hub repositories.
PRESETS |= {
    **{f"siglip-{s}-{p}-{px}": _siglip(s, p, px, _T5_ENGLISH, "bicubic") for s, p, px in _SIGLIP + _SO400M_14},
    **{
        f"siglip-{s}-{p}-{px}-multilingual": _siglip(s, p, px, _T5_MULTILINGUAL, "bicubic")
        for s, p, px in [("b", 16, 256), ("so400m", 16, 256)]
    },
    **{f"siglip2-{s}-{p}-{px}": _siglip(s, p, px, _GEMMA, "bilinear") for s, p, px in _SIGLIP_2 + _SO400M_14 + _GIANT},
}
# These two differ from the others: a short context, and a text tower without projection.
PRESETS |= {
    "siglip-so400m-14-224": _siglip("so400m", 14, 224, {**_T5_ENGLISH, "context_length": 16}, "bicubic"),
    "siglip-so400m-16-256-multilingual": _siglip(
        "so400m", 16, 256, {**_T5_MULTILINGUAL, "has_projection": False}, "bicubic"
    ),
}


def _quick_gelu(config: CLIPConfig) -> CLIPConfig:
    """Return the config with OpenAI's activation QuickGELU; in a ResNet it applies only to the text tower."""
    image = replace(config.image, activation="quick_gelu") if isinstance(config.image, ViTConfig) else config.image
    return replace(config, image=image, text=replace(config.own_text, activation="quick_gelu"))


_RESNETS = ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64")
_VITS = ("vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336", "vit-h-14")
PRESETS |= {f"{name}-quickgelu": _quick_gelu(PRESETS[name]) for name in _RESNETS + _VITS}  # For OpenAI's weights.


def preset(name: str) -> CLIPConfig:
    """Return the config of a preset.

    Raises:
        ConfigError: the preset does not exist; the message suggests the closest name.

    >>> preset("vit-b-32").embed_dim
    512
    """
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    return PRESETS[name]
