"""Every model by name, in one visible dict."""

from diptych.core.errors import ConfigError, unknown_name
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig

PRESETS: dict[str, CLIPConfig] = {
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
    # A few thousand photos, ten minutes, two cores.
    "photos-small": CLIPConfig(
        embed_dim=256,
        image=ViTConfig(image_px=64, patch_px=16, stem="conv", width=192, layers=4, heads=6, pooling="mean"),
        text=TextConfig(context_length=48, width=192, layers=3, heads=6),
    ),
}


def preset(name: str) -> CLIPConfig:
    """The model of a name.

    Raises:
        ConfigError: there is no such preset; the nearest is named.
    """
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    return PRESETS[name]
