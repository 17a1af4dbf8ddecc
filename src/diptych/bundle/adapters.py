"""Merge LoRA adapters in PEFT's format (Hu et al. 2022) into the Hugging Face CLIP model that they were trained on.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`. Each adapted layer has two small matrices A
(rank x inputs) and B (outputs x rank); its weight becomes W + scale * B A.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.bundle.folder import Bundle
from diptych.bundle.hub import PREFIX, download
from diptych.bundle.hugging_face import hugging_face_names
from diptych.bundle.libraries import check_hugging_face
from diptych.bundle.renaming import from_theirs, shape_text, to_theirs
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json
from diptych.models.clip import CLIP

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_LAYER_NAME = re.compile(r"[\w.]+")
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "fan_in_fan_out": "fan_in_fan_out",
    "megatron_config": "Megatron",
    "layer_replication": "layer_replication",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "use_bdlora": "BD-LoRA",
}
"""Unsupported settings, which change how an adapter is computed, and their names in messages."""


@dataclass(frozen=True, kw_only=True)
class _Scales:
    rank: int | None
    """Rank of all layers; None if the layers have different ranks, which follow from the shapes of their matrices."""
    alpha: float
    alpha_pattern: Mapping[str, float]
    """Alpha of individual layers, by a suffix of their names."""
    is_rank_stabilized: bool

    def of(self, layer: str, rank: int) -> float:
        """Return the scale of a layer: alpha / rank, or alpha / sqrt(rank) for rank-stabilized LoRA (Kalajdzievski 2023)."""
        own = (value for name, value in self.alpha_pattern.items() if layer == name or layer.endswith(f".{name}"))
        return next(own, self.alpha) / (rank**0.5 if self.is_rank_stabilized else rank)


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains an adapter in PEFT's format instead of a model."""
    return (folder / CONFIG).is_file()


def merged_adapter(folder: Path, read: Callable[[Path, str], Bundle]) -> tuple[Bundle, CLIP]:
    """Return the base model of an adapter, and the model with the adapter merged into its weights.

    The adapter's config names the base model as a folder or a hub id, which is downloaded if it is not in the cache.

    Args:
        folder: the folder of the adapter.
        read: function that opens the base model, given its path and its name: a path or a hub address.

    Raises:
        BundleError: a file is missing or damaged, the base model is not available, the adapter is not a supported kind of LoRA,
            or it does not fit the base model.
        ConfigError: the base model is not a CLIP model in Hugging Face's naming.
    """
    path = folder / CONFIG
    try:
        content = read_json(path)
        scales = _scales(content)
        base_name = content.get("base_model_name_or_path")
    except (ConfigError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BundleError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    if not isinstance(base_name, str) or not base_name:
        raise BundleError(f"{path}: does not name the base model (base_model_name_or_path is missing)")
    weights_path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights_path is None:
        raise BundleError(f"{folder}: holds no weights of the adapter ({_WEIGHTS[0]})")
    base = read(*_base(folder, base_name))
    check_hugging_face(base.config)
    table = hugging_face_names(base.config)
    weights = to_theirs(base.model.state_dict(), table)
    _merge(weights, read_weights(weights_path), scales, what=str(weights_path))
    return base, CLIP.from_weights(base.config, from_theirs(weights, table, base.config, what=str(weights_path)))


def _scales(content: Any) -> _Scales:
    if not isinstance(content, dict):
        raise ConfigError("is not a JSON object")
    if content.get("peft_type") != "LORA":
        raise ConfigError(f"peft_type is {content.get('peft_type')!r}; Diptych supports LORA")
    for name, title in _UNSUPPORTED.items():
        if content.get(name):
            raise ConfigError(f"has {name} {content[name]!r:.60}; Diptych does not support {title}")
    rank, alpha = content.get("r", 8), content.get("lora_alpha", 8)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1 or not isinstance(alpha, int | float):
        raise ConfigError(f"r is {rank!r} and lora_alpha {alpha!r}; Diptych needs a positive integer and a number")
    pattern = {str(name): float(value) for name, value in (content.get("alpha_pattern") or {}).items()}
    expression = next((name for name in pattern if not _LAYER_NAME.fullmatch(name)), None)
    if expression is not None:
        raise ConfigError(
            f"alpha_pattern has the regular expression {expression!r:.60}; Diptych supports only layer names"
        )
    return _Scales(
        rank=None if content.get("rank_pattern") else rank,
        alpha=float(alpha),
        alpha_pattern=pattern,
        is_rank_stabilized=bool(content.get("use_rslora")),
    )


def _base(folder: Path, name: str) -> tuple[Path, str]:
    """The path of the base model and its name: the path, or a hub address."""
    for candidate in (Path(name), folder / name):
        if candidate.is_dir():
            return candidate, str(candidate)
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise BundleError(f"{folder / CONFIG}: the base model {name} does not exist; copy it to that path")
    return download(f"{PREFIX}{name}"), f"{PREFIX}{name}"


def _merge(weights: dict[str, Tensor], adapter: Mapping[str, Tensor], scales: _Scales, *, what: str) -> None:
    """Add the products of the adapter's matrices to the base model's weights, and replace the modules that it contains."""
    short = {name.removeprefix(_PREFIX): tensor for name, tensor in adapter.items()}
    layers = sorted({name.partition(".lora_")[0] for name in short if ".lora_" in name})
    for layer in layers:
        down, up = (short.pop(f"{layer}.lora_{side}.weight", None) for side in ("A", "B"))
        target = f"{layer}.weight"
        if down is None or up is None or target not in weights:
            raise BundleError(
                f"{what}: does not fit the base model: {layer} is not a layer of the model, or a matrix is missing"
            )
        matrix, rank = weights[target], down.shape[0] if scales.rank is None and down.ndim else scales.rank
        if not rank or down.ndim != 2 or up.ndim != 2 or down.shape[0] != rank or up.shape[1] != rank:
            raise BundleError(
                f"{what}: {layer} has the matrices {shape_text(down.shape)} and {shape_text(up.shape)}, expected rank {rank}"
            )
        if (up.shape[0], down.shape[1]) != tuple(matrix.shape):
            raise BundleError(
                f"{what}: does not fit the base model: {layer} is {shape_text((up.shape[0], down.shape[1]))}, expected "
                f"{shape_text(matrix.shape)}"
            )
        weights[target] = matrix + scales.of(layer, rank) * (up.float() @ down.float()).to(matrix.dtype)
    _replace_modules(weights, short, what=what)


def _replace_modules(weights: dict[str, Tensor], rest: Mapping[str, Tensor], *, what: str) -> None:
    """Replace whole tensors: those of `modules_to_save`, and biases that were trained with the adapter."""
    for name, tensor in rest.items():
        plain = name.replace(".modules_to_save.default", "").replace(".modules_to_save", "").replace(".base_layer", "")
        if plain not in weights:
            raise BundleError(f"{what}: does not fit the base model: the base model has no {name}")
        if weights[plain].shape != tensor.shape:
            raise BundleError(
                f"{what}: does not fit the base model: {plain} is {shape_text(tensor.shape)}, expected "
                f"{shape_text(weights[plain].shape)}"
            )
        weights[plain] = tensor.to(weights[plain].dtype)
