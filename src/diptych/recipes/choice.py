"""Every recipe by name, in one visible dict."""

from collections.abc import Callable

from diptych.core.errors import ConfigError, unknown_name
from diptych.recipes.demo import demo
from diptych.recipes.flickr30k_small import flickr30k_small
from diptych.training.config import TrainConfig

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "flickr30k-small": flickr30k_small,
}


def recipe(name: str) -> TrainConfig:
    """The run that a name stands for.

    Raises:
        ConfigError: there is no such recipe; the nearest is named.
    """
    if name not in RECIPES:
        raise ConfigError(unknown_name("recipe", name, RECIPES))
    return RECIPES[name]()
