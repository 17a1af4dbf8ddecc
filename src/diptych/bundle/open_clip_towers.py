"""Read timm and transformers towers in open_clip's checkpoints: their configs and tensor names.

open_clip wraps a timm image model as `visual.trunk` with a projection in `visual.head`, or uses timm's own classifier as the
projection. It wraps a transformers text encoder as `text.transformer` with a projection in `text.proj`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from diptych.bundle.renaming import Rename, same
from diptych.core.errors import ConfigError
from diptych.core.settings import from_plain
from diptych.models.clip import image_tower, text_tower
from diptych.models.config import CLIPConfig
from diptych.models.third_party import import_timm
from diptych.models.third_party_config import TextPooling, TimmConfig, TransformersConfig
from diptych.models.timm_tower import model_options, pretrained_cfg, timm_model

_TRUNK, _HEAD = "visual.trunk", "visual.head"
_ENCODER, _PROJECTION = "text.transformer", "text.proj"
IGNORED = ("text.transformer.embeddings.position_ids",)
"""Position id buffers of old checkpoints, which are ignored."""
_POOLINGS: dict[str, TextPooling] = {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "cls"}


def timm_tower_config(vision: Mapping[str, Any]) -> TimmConfig:
    """Return the config of a timm image tower.

    Args:
        vision: open_clip's `vision_cfg`, with null values: `timm_proj: null` means that timm's classifier is the projection.

    Raises:
        ConfigError: timm is missing or has no such model, or open_clip's pooling or classifier cannot be expressed.
    """
    name, pool, proj = vision["timm_model_name"], vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if pool in ("abs_attn", "rot_attn"):
        raise ConfigError(f"vision_cfg has timm_pool {pool!r}, an attention pooling that Diptych does not support")
    if proj not in (None, "", "none", "linear", "mlp"):
        raise ConfigError(f"vision_cfg has timm_proj {proj!r}; known: linear, mlp, none, null")
    options = {
        ours: vision[theirs]
        for theirs, ours in (("timm_drop_path", "drop_path_rate"), ("patch_dropout", "patch_drop_rate"))
        if vision.get(theirs)
    }
    plain = {
        "kind": "timm",
        "name": name,
        "image_px": _size(vision.get("image_size", 224)),
        "transform": "config",
        "pooling": pool or None,
        "options": options,
        "projection": proj or "classifier",
        "projection_bias": [True, bool(vision.get("timm_proj_bias", False))],
    }
    config = from_plain(TimmConfig, plain, what="vision_cfg")
    pretrained_cfg(config.name)  # Refuses unknown names.
    return _as_reset(config, pool) if proj in ("linear", "mlp") else config


def transformers_tower_config(
    text: Mapping[str, Any], architecture: Mapping[str, Any], *, embed_dim: int
) -> TransformersConfig:
    """Return the config of a transformers text encoder; the caller sets its text preparation.

    Args:
        text: open_clip's `text_cfg`.
        architecture: the content of the encoder's `config.json`, in transformers' format.
        embed_dim: dimension of the embeddings.

    Raises:
        ConfigError: the pooling or the projection is unknown.
    """
    pooler, proj = text.get("hf_pooler_type") or "mean_pooler", text.get("hf_proj_type", "mlp")
    width = architecture.get("hidden_size") or architecture.get("d_model")
    if pooler == "cls_pooler":  # open_clip uses the output of the encoder's pooler if there is one.
        pooling: TextPooling = "pooler" if architecture.get("model_type") in _WITH_POOLER else "cls"
    elif pooler in _POOLINGS:
        pooling = _POOLINGS[pooler]
    else:
        raise ConfigError(f"text_cfg has hf_pooler_type {pooler!r}; known: cls_pooler, {', '.join(_POOLINGS)}")
    if proj not in (None, "linear", "mlp") or (proj is None and width != embed_dim):
        raise ConfigError(
            f"text_cfg has hf_proj_type {proj!r}, which cannot project {width} features to {embed_dim} dimensions"
        )
    plain = {
        "kind": "transformers",
        "name": text["hf_model_name"],
        "config": dict(architecture),
        "pooling": pooling,
        "projection": proj or "none",
        "vocab_size": int(architecture.get("vocab_size", 0)),
        "context_length": text.get("context_length", 77),
    }
    return from_plain(TransformersConfig, plain, what="text_cfg")


_WITH_POOLER = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "data2vec-text", "albert"})
"""Architectures with a pooler whose output open_clip uses for `cls_pooler`."""


def timm_tower_names(config: CLIPConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names of a timm image tower and open_clip's."""
    tower = config.image
    assert isinstance(tower, TimmConfig)
    with torch.device("meta"):
        built = image_tower(tower, config.embed_dim)
    names = list(built.state_dict())
    trunk = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    projection = {"weight": f"{_HEAD}.proj.weight", "bias": f"{_HEAD}.proj.bias"}
    projection |= {f"hidden.{part}": f"{_HEAD}.mlp.fc1.{part}" for part in ("weight", "bias")}
    projection |= {f"out.{part}": f"{_HEAD}.mlp.fc2.{part}" for part in ("weight", "bias")}
    ours = [name.removeprefix("projection.") for name in names if name.startswith("projection.")]
    return [
        *(same(f"image_tower.model.{name}", f"{_TRUNK}.{name}") for name in sorted(trunk)),
        *(same(f"image_tower.projection.{name}", projection[name]) for name in ours),
    ]


def transformers_tower_names(config: CLIPConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names of a transformers text encoder and open_clip's."""
    tower = config.text
    assert isinstance(tower, TransformersConfig)
    with torch.device("meta"):
        names = list(text_tower(tower, config.embed_dim).state_dict())
    encoder = [name.removeprefix("model.") for name in names if name.startswith("model.")]
    projection = {"hidden.weight": f"{_PROJECTION}.0.weight", "out.weight": f"{_PROJECTION}.2.weight"}
    projection["weight"] = f"{_PROJECTION}.weight"
    ours = [name.removeprefix("projection.") for name in names if name.startswith("projection.")]
    return [
        *_encoder_names(encoder),
        *(same(f"text_tower.projection.{name}", projection[name]) for name in ours),
    ]


def _encoder_names(names: Iterable[str]) -> list[Rename]:
    """Return the names of an encoder. open_clip has only T5's inner encoder; transformers has its token embedding twice."""
    names = list(names)
    tied = ("shared.weight", "encoder.embed_tokens.weight")
    if tied[0] not in names:
        return [same(f"text_tower.model.{name}", f"{_ENCODER}.{name}") for name in names]
    ours = tuple(f"text_tower.model.{name}" for name in tied)
    embedding = Rename(
        ours, f"{_ENCODER}.embed_tokens.weight", lambda parts: parts[0], lambda whole: [whole] * len(tied)
    )
    rest = [name for name in names if name not in tied]
    return [
        embedding,
        *(same(f"text_tower.model.{name}", f"{_ENCODER}.{name.removeprefix('encoder.')}") for name in rest),
    ]


def _size(size: Any) -> Any:
    return tuple(size) if isinstance(size, list) else size


def _as_reset(config: TimmConfig, pool: str) -> TimmConfig:
    """Return the config of a tower that open_clip builds with timm's default pooling and then changes to another pooling.

    The order matters: a vision transformer that is built with mean pooling has its last norm after the pooling, and one that
    is changed to mean pooling later has it before.
    """
    try:
        with torch.device("meta"):
            model = import_timm().create_model(config.name, **model_options(replace(config, pooling=None)))
        model.reset_classifier(0, **({"global_pool": pool} if pool else {}))
    except Exception as error:  # The exception class for an unsupported pooling depends on the model.
        raise ConfigError(
            f"vision_cfg has timm_pool {pool!r}, which {config.name} does not support ({error!s:.100})"
        ) from None
    expected = model.state_dict().keys()
    for options in ({}, {"fc_norm": False}, {"fc_norm": True}):
        candidate = replace(config, options={**config.options, **options})
        try:
            with torch.device("meta"):
                found = timm_model(candidate, 0).state_dict().keys()
        except ConfigError:
            continue
        if found == expected:
            return candidate
    raise ConfigError(
        f"vision_cfg has timm_pool {pool!r}, with which {config.name} has other weights in open_clip than in timm"
    )
