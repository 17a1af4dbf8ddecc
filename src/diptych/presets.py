"""Every model by name, in one visible dict."""

from dataclasses import replace
from typing import Any

from diptych.core.errors import ConfigError, unknown_name
from diptych.images.transforms import PixelConfig
from diptych.models.config import CLIPConfig, ConvNetConfig, ResNetConfig, TextConfig, ViTConfig


def _clip_text(**settings: Any) -> TextConfig:
    """CLIP's text tower: 12 causal layers of width 512, its byte pairs, 77 tokens (Radford et al. 2021, sec. 2.4)."""
    return TextConfig(tokenizer="clip-bpe", vocab_size=49408, **settings)


def _shapes(width: int, heads: int, layers: int) -> CLIPConfig:
    return CLIPConfig(
        embed_dim=width,
        image=ViTConfig(image_px=64, patch_px=8, width=width, layers=layers, heads=heads, pooling="mean"),
        text=TextConfig(
            tokenizer="character", vocab_size=64, context_length=64, width=width, layers=layers, heads=heads
        ),
    )


def _convnet(image: ConvNetConfig) -> CLIPConfig:
    text = TextConfig(vocab_size=4000, context_length=48, width=256, layers=2, heads=4, is_causal=False, pooling="mean")
    return CLIPConfig(embed_dim=256, image=image, text=text)


PRESETS: dict[str, CLIPConfig] = {
    # The paper's ResNets (table 19) and vision transformers (table 20).
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
    # open_clip's, not the paper's.
    "vit-h-14": CLIPConfig(
        embed_dim=1024,
        image=ViTConfig(patch_px=14, width=1280, layers=32, heads=16),
        text=_clip_text(width=1024, layers=24, heads=16),
    ),
    # SigLIP's layout (Zhai et al. 2023), with CLIP's byte pairs in place of its sentence pieces.
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
    # 29 million parameters: trains overnight where the paper's do not fit.
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
    # For `diptych demo`: 64-px drawings, a few dozen different words.
    "shapes-demo": CLIPConfig(
        embed_dim=64,
        image=ViTConfig(image_px=64, patch_px=16, stem="conv", width=64, layers=2, heads=4, pooling="mean"),
        text=TextConfig(vocab_size=512, context_length=32, width=64, layers=2, heads=4),
        init_temperature=0.05,
    ),
    # The same drawings, read letter by letter.
    "shapes-character": CLIPConfig(
        embed_dim=64,
        image=ViTConfig(image_px=64, patch_px=16, stem="conv", width=64, layers=2, heads=4, pooling="mean"),
        text=TextConfig(tokenizer="character", vocab_size=64, context_length=64, width=64, layers=2, heads=4),
        init_temperature=0.05,
    ),
    # A few thousand photos; a few thousand pictures of 32 pixels.
    "photos-convnet": _convnet(ConvNetConfig()),
    "icons-convnet": _convnet(ConvNetConfig(image_px=32, stem_stride=2)),
    # The same with a transformer.
    "photos-small": CLIPConfig(
        embed_dim=256,
        image=ViTConfig(image_px=64, patch_px=16, stem="conv", width=192, layers=4, heads=6, pooling="mean"),
        text=TextConfig(context_length=48, width=192, layers=3, heads=6),
    ),
}


def _quick_gelu(config: CLIPConfig) -> CLIPConfig:
    """The same with OpenAI's activation; a ResNet has none of its own to change."""
    image = replace(config.image, activation="quick_gelu") if isinstance(config.image, ViTConfig) else config.image
    return replace(config, image=image, text=replace(config.text, activation="quick_gelu"))


_PAPERS = (
    "rn50",
    "rn101",
    "rn50x4",
    "rn50x16",
    "rn50x64",
    "vit-b-32",
    "vit-b-16",
    "vit-l-14",
    "vit-l-14-336",
    "vit-h-14",
)
PRESETS |= {f"{name}-quickgelu": _quick_gelu(PRESETS[name]) for name in _PAPERS}  # As OpenAI's weights have them.


def preset(name: str) -> CLIPConfig:
    """The model of a name.

    Raises:
        ConfigError: there is no such preset; the nearest is named.
    """
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    return PRESETS[name]
