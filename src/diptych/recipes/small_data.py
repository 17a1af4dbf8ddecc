"""A few thousand captioned pictures, an evening, a laptop."""

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from diptych.core.errors import ConfigError, ImageError
from diptych.core.program import command
from diptych.core.settings import override
from diptych.data.batches.loader import DataConfig
from diptych.data.open_source import open_source
from diptych.data.sources.listing import missing_images
from diptych.data.sources.protocol import Source
from diptych.data.sources.splits import Splits
from diptych.images.augment import AugmentConfig
from diptych.images.decode import decode
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig

_SMALL = 100_000
"""Pictures; of more, transformers learn as well."""
_LOOKED_AT = 9
_TINY_PX = 64


def small_data() -> TrainConfig:
    """A convolutional image tower, words of the captions' own, one in five left out, Muon, small pictures first.

    Recipes for 400 million pairs learn next to nothing from 6,000; what was tried for this one is in `docs/log.md`.
    """
    return TrainConfig(
        recipe="small-data",
        model=preset("photos-convnet"),
        data=DataConfig(source="flickr8k", positives="class"),
        augment=AugmentConfig(crop_area=(0.47, 1.0), flip=0.5, drop_words=0.2),
        optimizer=OptimizerConfig(name="muon", lr=3e-3, weight_decay=0.2),
        schedule=ScheduleConfig(epochs=None, minutes=15, warmup_steps=60, small_first=((0.7, 64), (1.0, 96))),
        batch_size=128,
    )


def recipe_for(
    data: str, *, changes: Mapping[str, Any] | None = None, must_be_small: bool = True
) -> tuple[TrainConfig, str]:
    """The run for some data, fitted to the number and size of its pictures, and whether they have classes; and why.

    Args:
        data: `kind:location`.
        changes: settings by path that the run will have; those of `data` decide what its batch size is fitted to.
        must_be_small: refuse data for which other recipes are better, as where nobody asked for this one.

    Raises:
        ConfigError: the data is not small.
        DataError: it cannot be read.
    """
    of_data = {path: value for path, value in (changes or {}).items() if path.startswith("data.")}
    config = override(small_data(), {**of_data, "data.source": data})
    with missing_images(skip=config.data.skip_missing):
        source = open_source(data)
    num = len(source)
    if num > _SMALL and must_be_small:
        raise ConfigError(
            f"{data} holds {num:,} pictures; without a name, small-data is chosen for up to {_SMALL:,}: name a recipe, as in "
            f"{command('train', 'paper-vit-b-32', '--data', data)}"
        )
    config = replace(config, batch_size=_batch_size(_num_training(source, config.data)))
    if source.classes and all(source.label(number) is not None for number in range(num)):
        # A caption is a class's name then, and without it says nothing.
        augment, validation = replace(config.augment, drop_words=0.0), replace(config.validation, metric="zero_shot")
        config = replace(config, augment=augment, validation=validation)
    side = _usual_side(source)
    if side < _TINY_PX:
        schedule = replace(config.schedule, small_first=())
        config = replace(config, model=preset("icons-convnet"), schedule=schedule)
    return config, f"small-data, for {data} holds {num:,} pictures of about {side} px: little data"


def _num_training(source: Source, data: DataConfig) -> int:
    """How many samples the run trains on, as far as that decides the batch size."""
    num = len(source)
    if data.train_split != "all" and num <= _SMALL:
        splits = Splits(source, val_fraction=data.val_fraction, rule=data.split_rule)
        num = splits.sizes().get(data.train_split, 0)
    return min(num, data.max_samples or num)


def _batch_size(num: int) -> int:
    """Four steps or more an epoch, up to the recipe's own; of very few samples, all of them."""
    fitted = int(min(small_data().batch_size, max(8, 1 << max(1, num // 4).bit_length() - 1)))
    return max(2, min(num, fitted))


def _usual_side(source: Source) -> int:
    """The shorter side of a picture, in the median of a few."""
    sides = []
    for number in range(_LOOKED_AT):
        try:
            sides.append(min(decode(source[number * len(source) // _LOOKED_AT].image).size))
        except ImageError:
            continue
    return round(median(sides)) if sides else _TINY_PX
