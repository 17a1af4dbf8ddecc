"""Configs of timm image towers and transformers text towers.

A config file contains the name of a tower and the source of its weights. When a run starts, `bundle/resolve_towers.py` adds all
other settings explicitly. The bundle of the run stores the resolved config, so loading it needs no hub.
"""

import json
from collections.abc import Iterator
from dataclasses import field
from typing import Any, Literal, TypeAlias

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.images.transforms import Pixels, height_width
from diptych.models.limits import (
    MAX_CONTEXT_LENGTH,
    MAX_VOCAB_SIZE,
    MAX_WIDTH,
    check_at_most,
    check_image_px,
    write_squares_as_one_number,
)
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.preparation import TextPreparation

Projection: TypeAlias = Literal["linear", "mlp", "none"]
"""Projection from features to the joint embedding: `linear`, `mlp` (two linear layers with a GELU in between), or `none`."""
TextPooling: TypeAlias = Literal["auto", "mean", "cls", "last", "pooler"]
"""`mean` over the tokens of a text, its first token (`cls`), its last token (`last`), or the output of the architecture's own
pooler (`pooler`). `auto` is the pooling in a sentence-transformers folder, or `mean` for other models."""
Pretrained: TypeAlias = bool | str | None
"""Weights at the start of a run: true for the weights of `name`, a path of a folder or file, or None for random weights."""

NOT_IDENTITY = {"has_effect": False}
"""Metadata of a setting that does not change the embeddings of a trained model (`bundle/identity.py`)."""
_MAX_CONFIG_BYTES = 2**20
_MAX_NUMBER = 2**40
_POSITIONS = "max_position_embeddings"
_COUNTS = {"layer": 2**10, "layers": 2**10, "labels": 2**16}
"""Largest numbers of layers and labels, by the last word of a setting's name. Configs make lists of them."""
_CODE = frozenset({"auto_map", "trust_remote_code"})
_OTHER_MODELS = frozenset({"backbone", "use_pretrained_backbone", "use_timm_backbone"})
"""Entries of a config that make transformers load another model."""
_NO_OPTIONS = frozenset({"cache_dir", "checkpoint_path", "device", "features_only", "pruned"})
"""Arguments of timm's `create_model` that are not settings of an architecture, besides those that begin with `pretrained`.
Some read files or the hub."""


@settings
class TimmConfig:
    """A timm image model without its classifier, and a projection of its features."""

    kind: Literal["timm"] = "timm"
    """Kind of the image tower in a config file."""
    name: str
    """Name of the model in timm, such as `convnext_tiny` or `vit_base_patch16_clip_224.openai`. The part after the dot selects
    the weights."""
    pretrained: Pretrained = field(default=None, metadata=NOT_IDENTITY)
    """Weights at the start of a run: true for timm's (downloaded once), a folder or file, or none. Trained models ignore it."""
    image_px: Pixels = 0
    """Input size in pixels: the side of a square, or height and width; 0 for timm's own size, which replaces the 0 when a run
    starts."""
    transform: Literal["timm", "config"] = field(default="timm", metadata=NOT_IDENTITY)
    """`timm`: when a run starts, settings of `model.pixels` that are at their default are replaced by timm's mean, standard
    deviation and interpolation for these weights. `config`: `model.pixels` is used as it is."""
    pooling: str | None = None
    """timm's `global_pool`, such as `avg`, `token` or `map`; None for the model's default."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of the timm model, such as `drop_path_rate`."""
    projection: Projection | Literal["classifier"] = "linear"
    """Projection from features to the joint embedding. `classifier` is the timm model's own classifier with one class per
    dimension of the embeddings, as in many published CLIP models."""
    projection_hidden: int | None = None
    """Hidden width of the projection `mlp`; None for twice the dimension of the embeddings."""
    projection_bias: tuple[bool, bool] = (True, False)
    """Whether the hidden layer of the projection `mlp`, and the last layer of `mlp` and `linear`, have a bias."""

    def __post_init__(self) -> None:
        write_squares_as_one_number(self, "image_px")
        check_image_px(self.image_px)
        if min(height_width(self.image_px)) < 0:
            raise ConfigError(
                f"model.image.image_px is {self.image_px}; it must be at least 1, or 0 for timm's own size"
            )
        if not self.name:
            raise ConfigError("model.image.name is empty; set it to a timm model, such as convnext_tiny")
        _check_plain("model.image.options", self.options)
        refused = sorted(name for name in self.options if name in _NO_OPTIONS or name.startswith("pretrained"))
        if refused:
            raise ConfigError(
                f"model.image.options has {refused[0]}, which is not an option of an architecture; remove it, and name weights "
                "with model.image.pretrained"
            )
        _check_hidden("model.image", self.projection_hidden)


@settings
class TransformersConfig:
    """A transformers text encoder, pooling of its last hidden states, and a projection."""

    kind: Literal["transformers"] = "transformers"
    """Kind of the text tower in a config file."""
    name: str = field(metadata=NOT_IDENTITY)
    """Hub id or local folder of the encoder, such as `sentence-transformers/all-MiniLM-L6-v2`, or the name of an architecture,
    such as `bert`. A trained model contains the encoder and does not read it again."""
    pretrained: Pretrained = field(default=None, metadata=NOT_IDENTITY)
    """Weights at the start of a run: true for those of `name`, another folder or file, or none. Trained models ignore it."""
    config: dict[str, Any] = field(default_factory=dict, hash=False)
    """The architecture's config in transformers, including `model_type`. It is read from `name` when a run starts; entries that
    you set here replace those that are read."""
    pooling: TextPooling = "auto"
    """How tokens are pooled."""
    projection: Projection = "linear"
    """Projection from features to the joint embedding."""
    projection_hidden: int | None = None
    """Hidden width of the projection `mlp`; None for the mean of the widths of the features and of the embeddings."""
    projection_bias: tuple[bool, bool] = (False, False)
    """Whether the hidden layer of the projection `mlp`, and the last layer of `mlp` and `linear`, have a bias."""
    tokenizer: TokenizerKind = "pretrained"
    """`pretrained` is the encoder's own tokenizer, which is copied into the bundle; for other values see `TextConfig`."""
    preparation: TextPreparation = TextPreparation()
    """Text preparation for the encoder's own tokenizer. It is read from `name` when a run starts."""
    vocab_size: int = 0
    """Number of rows of the token embedding; 0 for the encoder's own number, which replaces the 0 when a run starts."""
    context_length: int = 0
    """Maximum number of tokens per text; 0 for the encoder's maximum, up to 512, which replaces the 0 when a run starts."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("model.text.name is empty; set it to a text encoder, such as bert, a hub id or a folder")
        _check_plain("model.text.config", self.config)
        _check_hidden("model.text", self.projection_hidden)
        for name, largest in (("vocab_size", MAX_VOCAB_SIZE), ("context_length", MAX_CONTEXT_LENGTH)):
            value = getattr(self, name)
            if value < 0:
                raise ConfigError(f"model.text.{name} is {value}; it must be at least 1, or 0 for the encoder's own")
            check_at_most(f"model.text.{name}", value, largest)
        if 0 < self.context_length < 3:
            raise ConfigError(
                f"model.text.context_length is {self.context_length}; it must be at least 3 (start, end and one more token)"
            )
        positions = self.config.get(_POSITIONS)
        if isinstance(positions, int):
            check_at_most(f"model.text.config.{_POSITIONS}", positions, 2**24)


def is_resolved(tower: TimmConfig | TransformersConfig) -> bool:
    """Whether a config explicitly contains all settings that building the tower needs.

    >>> is_resolved(TimmConfig(name="resnet18")), is_resolved(TimmConfig(name="resnet18", image_px=224, transform="config"))
    (False, True)
    """
    if isinstance(tower, TimmConfig):
        return min(height_width(tower.image_px)) > 0 and tower.transform == "config"
    is_sized = tower.vocab_size > 0 or tower.tokenizer != "pretrained"
    return "model_type" in tower.config and tower.pooling != "auto" and tower.context_length > 0 and is_sized


def _check_hidden(where: str, hidden: int | None) -> None:
    if hidden is not None:
        if hidden < 1:
            raise ConfigError(f"{where}.projection_hidden is {hidden}; it must be at least 1")
        check_at_most(f"{where}.projection_hidden", hidden, MAX_WIDTH)


def _check_plain(where: str, content: dict[str, Any]) -> None:
    """Check that a config of another library is plain JSON, is not too large, and needs no code from its repository."""
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError):
        raise ConfigError(f"{where} is not plain JSON: numbers, strings, booleans, nulls, lists and objects") from None
    if len(text) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"{where} has {len(text):,} characters; it must have at most {_MAX_CONFIG_BYTES:,}")
    for name, value in _entries(content):
        _check_entry(where, name, value)
    if any(isinstance(value, int) and abs(value) > _MAX_NUMBER for value in content.values()):
        raise ConfigError(f"{where} has a number above {_MAX_NUMBER:,}")


def _check_entry(where: str, name: str, value: Any) -> None:
    """Raise an error for an entry that needs code, loads something else, or would use up the memory."""
    if name in _CODE or (name.endswith("_implementation") and "/" in str(value)):
        raise ConfigError(f"{where} needs code from its repository, which Diptych never runs; choose another model")
    if (name in _OTHER_MODELS and value) or (name == "model_type" and str(value).startswith("timm_")):
        raise ConfigError(f"{where} has {name} {value!r:.40}, which stands for another model inside of the tower")
    largest = _COUNTS.get(name.rpartition("_")[2])
    if largest is not None and isinstance(value, int):
        check_at_most(f"{where}.{name}", value, largest)


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """The names and values of all objects in plain data, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield str(name), value
            yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)
