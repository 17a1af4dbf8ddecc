"""Converts command-line options to the configuration of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.output import print_line
from diptych.core.errors import ConfigError
from diptych.core.paths import path_kind

if TYPE_CHECKING:
    from diptych.training.config import TrainConfig


def base_config(
    name: str | None, path: Path | None, data: str | None = None, *, changes: Mapping[str, Any] | None = None
) -> "TrainConfig":
    """The configuration of a recipe or of a config file. If only data is given, a recipe is selected for it and printed.

    The recipe `small-data` is adapted to the data.

    Args:
        name: name of the recipe.
        path: config file, instead of a recipe.
        data: address of the data source.
        changes: settings by path that the run will have. They influence the selection, but are not applied.

    Raises:
        ConfigError: there is neither data nor a recipe nor a file, both a recipe and a file, or the recipe or file does not
            exist.
    """
    from diptych.recipes.config_file import read_config_file
    from diptych.recipes.recipe import RECIPES, recipe

    if path is None and data is not None and name in (None, "small-data"):
        from diptych.recipes.small_data import recipe_for

        selected, reason = recipe_for(data, changes=changes, must_be_small=name is None)
        if name is None:
            print_line(f"No recipe was named: {reason}")
        return selected
    if name is None and path is None:
        raise ConfigError(f"name data to train on, a recipe ({', '.join(RECIPES)}), or --config FILE")
    if name is not None and path is not None:
        raise ConfigError("a recipe and --config exclude each other")
    return read_config_file(path, data=data, changes=changes) if path is not None else recipe(name or "")


def is_data(word: str) -> bool:
    """Whether a word is the address of a data source, not the name of a recipe."""
    from diptych.data.open_source import SOURCES
    from diptych.recipes.recipe import RECIPES

    kind, colon, _ = word.partition(":")
    return word not in RECIPES and (bool(colon and kind in {*SOURCES, "mix"}) or path_kind(word) is not None)


def length(limits: dict[str, float | None]) -> dict[str, Any]:
    """The settings for the length of a run. A limit that is given replaces all limits of the recipe.

    >>> length({"minutes": None, "steps": 10})
    {'schedule.minutes': None, 'schedule.steps': 10}

    Args:
        limits: `minutes`, `epochs` and `steps`; None for those that are not given.

    Raises:
        ConfigError: more than one limit is given.
    """
    names = [name for name, value in limits.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(f"--{' and --'.join(names)} exclude each other")
    return {f"schedule.{name}": value for name, value in limits.items()} if names else {}


def as_settings(changes: list[str]) -> dict[str, str]:
    """Parse changes of the form `path=value`.

    >>> as_settings(["optimizer.eps=1e-8"])
    {'optimizer.eps': '1e-8'}

    Raises:
        ConfigError: a change does not have this form.
    """
    pairs = {}
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write path=value, as in --set optimizer.eps=1e-8")
        pairs[path] = value
    return pairs


def resolve(base: "TrainConfig", preset_name: str | None, given: dict[str, Any], changes: list[str]) -> "TrainConfig":
    """Apply options and changes to a configuration.

    Args:
        base: the configuration.
        preset_name: preset of the model; None for the model of `base`.
        given: settings by path. The changes are added to it.
        changes: further settings of the form `path=value`.

    Raises:
        ConfigError: a change is malformed, names no setting or has an invalid value, or the options exclude each other.
    """
    import dataclasses

    from diptych.core.settings import override
    from diptych.presets import preset

    given |= as_settings(changes)
    if given.get("init", base.init) is not None:
        model_options = [f"--{path}" for path in given if path.startswith("model.")]
        model_options += ["--preset"] * (preset_name is not None)
        if model_options:
            raise ConfigError(f"--init determines the model; it excludes {', '.join(model_options)}")
    if preset_name is not None:
        schedule = dataclasses.replace(base.schedule, small_first=())  # These sizes are for the recipe's own model.
        base = dataclasses.replace(base, model=preset(preset_name), schedule=schedule)
    return override(base, given)
