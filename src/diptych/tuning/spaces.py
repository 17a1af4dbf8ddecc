"""Default search spaces by priority, and search spaces from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from diptych.core.errors import ConfigError, unknown_name
from diptych.core.settings import read_yaml
from diptych.models.config import TextConfig, ViTConfig
from diptych.training.config import TrainConfig
from diptych.tuning.space import Dimension

Priority: TypeAlias = Literal["high", "medium", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
_KEYS = ("fields", "choices", "low", "high", "log", "integer")


def default_dimensions(base: TrainConfig, priority: Priority = "high") -> tuple[Dimension, ...]:
    """The default dimensions around a base config.

    Args:
        base: the base config. The architecture of a tower that is not a transformer, or of a model that is loaded from `init`,
            is not changed.
        priority: `high`: learning rate, temperature, batch size and weight decay; `medium` adds depth, width and dropout; `low`
            adds heads and the MLP ratio.
    """
    is_own = {"text": isinstance(base.model.text, TextConfig), "image": isinstance(base.model.image, ViTConfig)}
    towers = [] if base.init is not None else [tower for tower, has_sizes in is_own.items() if has_sizes]
    both = {
        name: tuple(f"model.{tower}.{name}" for tower in towers) for name in ("width", "dropout", "heads", "mlp_ratio")
    }
    high = [
        Dimension(name="lr", fields=("optimizer.lr",), low=1e-5, high=1e-3, log=True),
        Dimension(name="temperature", fields=("model.init_temperature",), low=0.01, high=0.1, log=True),
        Dimension(name="batch_size", fields=("batch_size",), choices=(32, 64, 128)),
        Dimension(name="weight_decay", fields=("optimizer.weight_decay",), low=1e-6, high=1e-3, log=True),
    ]
    medium = [
        Dimension(name="text_layers", fields=("model.text.layers",), choices=(6, 8, 12)),
        Dimension(name="image_layers", fields=("model.image.layers",), choices=(10, 12, 14)),
        Dimension(name="width", fields=both["width"], choices=(512, 768, 1024)),
        Dimension(name="dropout", fields=both["dropout"], choices=(0.05, 0.1, 0.2)),
    ]
    low = [
        Dimension(name="heads", fields=both["heads"], choices=(8, 12, 16)),
        Dimension(name="mlp_ratio", fields=both["mlp_ratio"], choices=(2.0, 4.0, 6.0)),
    ]
    levels = [high, medium, low][: PRIORITIES.index(priority) + 1]
    return tuple(dimension for level in levels for dimension in level if _is_available(dimension, towers, base))


def _is_available(dimension: Dimension, towers: list[str], base: TrainConfig) -> bool:
    model_fields = [field for field in dimension.fields if field.startswith("model.")]
    if not dimension.fields or (base.init is not None and model_fields):
        return False
    return all(dimension.name != f"{tower}_layers" or tower in towers for tower in ("image", "text"))


def read_dimensions(path: Path) -> tuple[Dimension, ...]:
    """Read dimensions from a YAML file, which maps names or dotted paths to a list of choices or to a range.

        optimizer.lr: {low: 1.0e-5, high: 1.0e-3, log: true}
        batch_size: [32, 64]
        width: {fields: [model.image.width, model.text.width], choices: [256, 512]}

    Raises:
        ConfigError: the file cannot be read or has another format, or a range is empty.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict) or not plain:
        raise ConfigError(f"{path}: lists nothing to try; write one, as in 'batch_size: [32, 64]'")
    return tuple(_dimension(str(name), content, path) for name, content in plain.items())


def _dimension(name: str, content: Any, path: Path) -> Dimension:
    where = f"{path}: {name}"
    if isinstance(content, list):
        content = {"choices": content}
    if not isinstance(content, dict):
        raise ConfigError(f"{where} is {content!r}; write a list of choices, or {{low: ..., high: ...}}")
    unknown = [str(key) for key in content if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{where}: {unknown_name('key', unknown[0], _KEYS)}")
    given = {key: value for key, value in content.items() if key != "fields"}
    fields = _list(content.get("fields", [name]), f"{where}.fields")
    if "choices" in given:
        if len(given) > 1:
            raise ConfigError(f"{where} has choices and a range; write one of them")
        choices = [_as_number(choice) for choice in _list(given["choices"], f"{where}.choices")]
        if any(isinstance(choice, list | dict) for choice in choices):
            raise ConfigError(f"{where}: each choice must be one value: a number, a word, true, false or null")
        return Dimension(name=name, fields=tuple(map(str, fields)), choices=tuple(choices))
    low, high = (_number(given, key, where) for key in ("low", "high"))
    log, integer = (bool(given.get(key, False)) for key in ("log", "integer"))
    return Dimension(name=name, fields=tuple(map(str, fields)), low=low, high=high, log=log, integer=integer)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where} is {value!r}; it must be a list with at least one item")
    return value


def _as_number(value: Any) -> Any:
    """Convert a string to a number if possible: YAML reads 1e-3 as a string, but 1.0e-3 as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _number(given: Mapping[str, Any], key: str, where: str) -> float:
    if key not in given:
        raise ConfigError(f"{where} has no {key}; a range needs low and high")
    try:
        return float(given[key])
    except (TypeError, ValueError):
        raise ConfigError(f"{where}.{key} is {given[key]!r}; it must be a number") from None
