"""All recipes by name."""

from collections.abc import Callable

from diptych.core.errors import ConfigError, unknown_name
from diptych.recipes.cifar10_rn import cifar10_rn
from diptych.recipes.demo import demo
from diptych.recipes.flickr30k import flickr30k_bert, flickr30k_small, flickr30k_vit_b_16
from diptych.recipes.paper_vit_b_32 import paper_vit_b_32
from diptych.recipes.shapes import shapes
from diptych.recipes.small_data import small_data, small_vit
from diptych.training.config import TrainConfig

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "small-data": small_data,
    "small-vit": small_vit,
    "flickr30k-small": flickr30k_small,
    "flickr30k-vit-b-16": flickr30k_vit_b_16,
    "flickr30k-bert": flickr30k_bert,
    "shapes": shapes,
    "paper-vit-b-32": paper_vit_b_32,
    "cifar10-rn": cifar10_rn,
}


def recipe(name: str) -> TrainConfig:
    """The config of a recipe.

    Raises:
        ConfigError: there is no recipe of this name; the message suggests the closest one.

    >>> recipe("demo").data.source
    'shapes'
    """
    if name not in RECIPES:
        raise ConfigError(unknown_name("recipe", name, RECIPES))
    return RECIPES[name]()
