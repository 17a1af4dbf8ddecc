"""Config files that override some settings of a recipe or of the defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core.errors import ConfigError, unknown_name
from diptych.core.settings import merge, to_plain
from diptych.recipes.recipe import RECIPES, recipe
from diptych.recipes.small_data import recipe_for, small_data
from diptych.training.config import CUSTOM, TrainConfig, read_plain_config, starts_from


def read_config_file(path: Path, *, data: str | None = None, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read the config of a run from a YAML file. Settings in the file override those of the recipe that it names.

    A file that contains every setting, such as `config.yaml` in a run folder, does not depend on the current recipe. Without
    `recipe`, or with `custom`, missing settings have the defaults of `TrainConfig`. `small-data` is fitted to the data, as on
    the command line.

    Args:
        path: the file. Secrets of its addresses are read from `secrets.yaml` next to it.
        data: data of the run, as `kind:location`, if it differs from that in the file. Used only to fit `small-data`.
        changes: settings of the run by dotted path. Used only to fit `small-data`; they are not applied to the result.

    Raises:
        ConfigError: the file is missing or is not YAML, or its recipe or a setting is unknown or invalid.
        DataError: the data for `small-data` cannot be read.
    """
    plain = read_plain_config(path)
    name = starts_from(plain)
    if name != CUSTOM and name not in RECIPES:
        raise ConfigError(f"{path}: {unknown_name('recipe', name, [*RECIPES, CUSTOM])}")
    if name == "small-data":
        base = _fitted(plain.get("data", {}), path, data=data, changes=changes or {})
    else:
        base = TrainConfig() if name == CUSTOM else recipe(name)
    return merge(base, plain, what=str(path))


def _fitted(data_settings: Any, path: Path, *, data: str | None, changes: Mapping[str, Any]) -> TrainConfig:
    """The recipe `small-data`, fitted to the data of the run if the file or the caller names it."""
    config = merge(small_data().data, data_settings, what=f"{path}: data")
    source = data or (config.source if "source" in data_settings else None)
    if source is None:
        return small_data()
    settings = {f"data.{name}": value for name, value in to_plain(config).items()}
    return recipe_for(source, changes={**settings, **changes}, must_be_small=False)[0]
