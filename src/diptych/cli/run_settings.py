"""From options to the settings of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.output import say
from diptych.core.errors import ConfigError
from diptych.core.paths import path_kind

if TYPE_CHECKING:
    from diptych.training.config import TrainConfig


def base_config(
    name: str | None, path: Path | None, data: str | None = None, *, changes: Mapping[str, Any] | None = None
) -> "TrainConfig":
    """A recipe's run, or a file's; or, of data alone, one that is chosen for it and told. `small-data` is fitted to its data.

    `changes` are the settings by path that the run will have; they are not applied here.

    Raises:
        ConfigError: nothing is given, or too much, or there is no such recipe or file.
    """
    from diptych.recipes.config_file import read_config_file
    from diptych.recipes.recipe import RECIPES, recipe

    if path is None and data is not None and name in (None, "small-data"):
        from diptych.recipes.small_data import recipe_for

        chosen, why = recipe_for(data, changes=changes, must_be_small=name is None)
        if name is None:
            say(f"No recipe was named: {why}")
        return chosen
    if name is None and path is None:
        raise ConfigError(f"name data to train on, a recipe ({', '.join(RECIPES)}), or --config FILE")
    if name is not None and path is not None:
        raise ConfigError("a recipe and --config exclude each other")
    return read_config_file(path, data=data, changes=changes) if path is not None else recipe(name or "")


def is_data(word: str) -> bool:
    """Whether a word names pictures and captions, and no recipe."""
    from diptych.data.open_source import SOURCES
    from diptych.recipes.recipe import RECIPES

    kind, colon, _ = word.partition(":")
    return word not in RECIPES and (bool(colon and kind in {*SOURCES, "mix"}) or path_kind(word) is not None)


def length(limits: dict[str, float | None]) -> dict[str, Any]:
    """The one limit that is given replaces the recipe's, whichever it has."""
    given = [name for name, value in limits.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"--{' and --'.join(given)} exclude each other")
    return {f"schedule.{name}": value for name, value in limits.items()} if given else {}


def as_settings(changes: list[str]) -> dict[str, str]:
    """`path=value` changes by path.

    Raises:
        ConfigError: one is not written so.
    """
    pairs = {}
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write path=value, as in --set optimizer.eps=1e-8")
        pairs[path] = value
    return pairs


def resolve(base: "TrainConfig", preset_name: str | None, given: dict[str, Any], changes: list[str]) -> "TrainConfig":
    """The run with another model, with what options say, and with `path=value` changes.

    Raises:
        ConfigError: a change is none, names no setting, or does not fit.
    """
    import dataclasses

    from diptych.core.settings import override
    from diptych.presets import preset

    given |= as_settings(changes)
    if given.get("init", base.init) is not None:
        of_model = [f"--{path}" for path in given if path.startswith("model.")] + ["--preset"] * (
            preset_name is not None
        )
        if of_model:
            raise ConfigError(f"--init brings its own model; it excludes {', '.join(of_model)}")
    if preset_name is not None:
        schedule = dataclasses.replace(base.schedule, small_first=())  # They are sizes of the recipe's own model.
        base = dataclasses.replace(base, model=preset(preset_name), schedule=schedule)
    return override(base, given)
