"""Infer the architecture of a weights file in OpenAI's naming, which contains no config (decision 0048).

Names and shapes determine most of the architecture. They do not determine the activation, the number of attention heads, the
pooling, or whether the text tower has a causal mask; a wrong value silently gives wrong features. The activation must be known:
OpenAI's own archives and LongCLIP imply it, and for other files the user states it. The other settings have defaults, which
the origin of the model records as assumptions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from diptych.bundle.libraries import check_openai_names
from diptych.bundle.long_clip import is_long_clip, with_positions
from diptych.bundle.openai import MARKS, load_openai, plain_names
from diptych.bundle.weights import read_state_dict
from diptych.bundle.weights_facts import Pooling, WeightsFacts
from diptych.core.errors import BundleError, ConfigError
from diptych.core.program import command
from diptych.models.clip import CLIP
from diptych.models.config import Activation, CLIPConfig, ImageConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.presets import preset as preset_config
from diptych.tokenizers.preparation import TextPreparation

_TEXT_POOLING: dict[Pooling, Literal["end", "eot", "cls"]] = {"eot": "end", "last": "eot", "first": "cls"}
"""The value of `TextConfig.pooling` in SigLIP's layout, which has no causal mask and attends to the padding."""
_IMAGE_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
"""Width of an attention head by tower width, for open_clip's image towers H, g, bigG and e; all others use 64."""
_COCA_POOL_HEADS = 8
_POOL = "visual.attn_pool."


@dataclass(frozen=True, kw_only=True)
class BareModel:
    """A model from a weights file, and how it was read."""

    model: CLIP
    assumed: str
    """Assumptions about settings that the file does not contain and the user did not state, in words."""
    note: str | None
    """Which weights were selected from a training checkpoint, in words; None if it has only one set."""


def read_bare_weights(path: Path, facts: WeightsFacts | None = None) -> BareModel:
    """Return the model in a weights file in OpenAI's naming.

    Args:
        path: the file.
        facts: settings that the user states.

    Raises:
        BundleError: the file cannot be read or uses another naming, or the activation is unknown or contradicts the file.
        ConfigError: the preset does not exist, or a stated setting does not fit the model.
    """
    facts = WeightsFacts() if facts is None else facts
    found = read_state_dict(path, facts.weights)
    weights, activation = found.tensors, facts.activation
    _refuse_other_names(weights, path)
    is_openai_archive = all(name in weights for name in MARKS)
    is_long = is_long_clip(weights)
    if is_long:
        weights = with_positions(weights, what=str(path))
    if facts.preset is not None:
        config = preset_config(facts.preset)
        check_openai_names(config, what="OpenAI's naming")
        stated = [name for name in facts.stated if name not in ("activation", "preset", "weights")]
        if stated:
            raise ConfigError(f"a preset contains the architecture, so {stated[0]} cannot be set with it")
    else:
        known: Activation | None = "quick_gelu" if is_openai_archive or is_long else None
        config = inferred_config(weights, replace(facts, activation=activation or known), path)
    if is_openai_archive and config.own_text.activation != "quick_gelu":
        raise BundleError(
            f"{path}: is OpenAI's archive, which was trained with quick_gelu, not with {config.own_text.activation}"
        )
    if activation is not None and activation != config.own_text.activation:
        raise BundleError(f"activation {activation} contradicts {facts.preset}, which has {config.own_text.activation}")
    if is_openai_archive or is_long:  # Both use OpenAI's tokenizer.
        config = replace(config, text=replace(config.own_text, preparation=TextPreparation(special_names="openai")))
    model = load_openai(weights, config, what=str(path))
    return BareModel(model=model, assumed=_assumed(config, facts), note=found.note)


def _refuse_other_names(weights: Mapping[str, Tensor], path: Path) -> None:
    if any(name.startswith("vision_model.") for name in weights):
        raise BundleError(f"{path}: is in Hugging Face's format; pass the folder, which contains config.json")
    if any(name.startswith("visual.trunk.") for name in weights):
        raise BundleError(
            f"{path}: has a timm image tower, which the file does not name; pass a folder with open_clip_config.json"
        )


def inferred_config(weights: Mapping[str, Tensor], facts: WeightsFacts, path: Path) -> CLIPConfig:
    """Return the architecture that follows from names and shapes, as in OpenAI's `build_model`, and from the user's settings.

    Raises:
        BundleError: the names are not OpenAI's, or the activation is not known.
        ConfigError: a stated setting does not fit the model.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in plain_names(weights).items()}
    try:
        image = _vit(shapes, facts) if "visual.conv1.weight" in shapes and "visual.proj" in shapes else _resnet(shapes)
        bias = 0.0 if "logit_bias" in shapes else None
        config = CLIPConfig(embed_dim=_embed_dim(shapes), image=image, text=_text(shapes, facts), init_logit_bias=bias)
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        first = ", ".join(sorted(weights)[:3])
        raise BundleError(f"{path}: is not in OpenAI's naming; its first tensors are {first}") from None
    except ConfigError as error:
        raise BundleError(f"{path}: {error}") from None
    if facts.activation is None:
        raise BundleError(
            f"{path}: does not say which activation it was trained with, and the wrong one gives wrong features; use "
            "--activation quick_gelu (OpenAI's weights, and open_clip's models named -quickgelu) or --activation gelu to "
            f"{command('import')}, or activation= to diptych.load"
        )
    return _with_activation(config, facts.activation)


def _embed_dim(shapes: Mapping[str, tuple[int, ...]]) -> int:
    if "text_projection" in shapes:
        return shapes["text_projection"][1]
    return shapes["text_projection.weight"][0] if "text_projection.weight" in shapes else shapes["ln_final.weight"][0]


def _text(shapes: Mapping[str, tuple[int, ...]], facts: WeightsFacts) -> TextConfig:
    width, is_appended = shapes["ln_final.weight"][0], "cls_emb" in shapes
    is_padded = facts.is_causal is False
    has_bias = "text_projection.bias" in shapes
    tower = TextConfig(
        tokenizer="clip-bpe",
        vocab_size=shapes["token_embedding.weight"][0],
        context_length=shapes["positional_embedding"][0] - is_appended,
        width=width,
        layers=_count(shapes, "transformer.resblocks."),
        heads=_heads(width) if facts.heads is None else facts.heads[1],
        mlp_ratio=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
        is_causal=not is_padded,
        layout="siglip" if is_padded else "clip",
        norm_eps=1e-5 if is_padded else None,
        has_projection="text_projection" in shapes or "text_projection.weight" in shapes,
        has_projection_bias=has_bias if has_bias != is_padded else None,
        pooling="appended" if is_appended else "eot",
    )
    if is_appended and (is_padded or facts.text_pooling != "eot"):
        raise ConfigError("is a CoCa model, whose text tower is causal and pools its appended token")
    return replace(tower, pooling=_TEXT_POOLING[facts.text_pooling]) if is_padded else tower


def _vit(shapes: Mapping[str, tuple[int, ...]], facts: WeightsFacts) -> ViTConfig:
    width, _, *patch = shapes["visual.conv1.weight"]
    side = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    is_coca = f"{_POOL}query" in shapes
    if is_coca and facts.image_pooling != "cls":
        raise ConfigError("is a CoCa model, whose image tower uses attention pooling")
    pool_heads = facts.heads[2] if facts.heads is not None and len(facts.heads) > 2 else _COCA_POOL_HEADS
    return ViTConfig(
        image_px=patch[0] * side if patch[0] == patch[1] else (patch[0] * side, patch[1] * side),
        patch_px=patch[0] if patch[0] == patch[1] else (patch[0], patch[1]),
        width=width,
        layers=_count(shapes, "visual.transformer.resblocks."),
        heads=_heads(width, _IMAGE_HEAD_WIDTHS.get(width, 64)) if facts.heads is None else facts.heads[0],
        mlp_ratio=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
        pooling="coca" if is_coca else facts.image_pooling,
        pool_heads=pool_heads if is_coca else None,
        has_norm_pre=any(name.startswith("visual.ln_pre.") for name in shapes),
    )


def _resnet(shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig:
    width = shapes["visual.conv3.weight"][0]
    side = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
    first, second, third, fourth = (_count(shapes, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
    return ResNetConfig(image_px=32 * side, layers=(first, second, third, fourth), width=width, heads=width // 2)


def _heads(width: int, head_width: int = 64) -> int:
    if width % head_width:
        raise ConfigError(
            f"width {width} is not a multiple of {head_width}, so the heads cannot be inferred; add --heads or --preset"
        )
    return width // head_width


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Return the number of numbered modules under a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def _with_activation(config: CLIPConfig, activation: Activation) -> CLIPConfig:
    image: ImageConfig = config.image
    image = replace(image, activation=activation) if isinstance(image, ViTConfig) else image
    return replace(config, image=image, text=replace(config.own_text, activation=activation))


def _assumed(config: CLIPConfig, facts: WeightsFacts) -> str:
    """Return the settings that neither the file nor the user states, for the origin of the model."""
    parts = ["OpenAI's image transform"]
    if facts.preset is None:
        image, text = config.image, config.own_text
        parts += ["square pictures", "norms with an epsilon of 1e-05"]
        if facts.pooling is None:
            parts.append("class token or attention pooling")
        if facts.is_causal is None and text.pooling != "appended":
            parts.append("a causal mask")
        if facts.heads is None:
            parts.append(f"heads by width ({getattr(image, 'heads', 0)} and {text.heads})")
    return ", ".join(parts)
