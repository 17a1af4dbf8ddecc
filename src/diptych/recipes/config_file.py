"""Config files: a recipe's run, or the defaults, with some settings of one's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core.errors import ConfigError, unknown_name
from diptych.core.settings import merge, to_plain
from diptych.recipes.choice import RECIPES, recipe
from diptych.recipes.small_data import recipe_for, small_data
from diptych.training.config import CUSTOM, TrainConfig, read_plain_config, starts_from


def read_config_file(path: Path, *, data: str | None = None, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """The run that a YAML file describes: the recipe that it names, with the file's settings in place of the recipe's.

    A file that names every setting, as `config.yaml` in a run folder does, means what it says, whatever its recipe is today.
    Without `recipe`, or with `custom`, the other settings have the defaults of `TrainConfig`. `small-data` is fitted to the
    data, as on the command line.

    Args:
        path: the file. Secrets of its addresses are read from `secrets.yaml` next to it.
        data: data that the run will have in place of the file's, `kind:location`; only `small-data` is fitted to it.
        changes: settings by path that the run will have, for the same purpose; they are not applied here.

    Raises:
        ConfigError: the file is missing, is not YAML, names no known recipe, or holds a setting that does not exist or fit.
        DataError: the data that `small-data` is fitted to cannot be read.
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


def _fitted(of_data: Any, path: Path, *, data: str | None, changes: Mapping[str, Any]) -> TrainConfig:
    """`small-data`, fitted to the data that the run will have, if it is named."""
    config = merge(small_data().data, of_data, what=f"{path}: data")
    source = data or (config.source if "source" in of_data else None)
    if source is None:
        return small_data()
    settings = {f"data.{name}": value for name, value in to_plain(config).items()}
    return recipe_for(source, changes={**settings, **changes}, must_be_small=False)[0]
