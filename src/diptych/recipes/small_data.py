"""The recipe for a few thousand captioned images on a laptop, and its adaptation to given data."""

from collections.abc import Mapping
from contextlib import suppress
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
"""Number of images up to which this recipe is better than those with transformers."""
_NUM_MEASURED = 9
_TINY_PX = 64


def small_data() -> TrainConfig:
    """A convolutional image tower, a tokenizer trained on the captions, word dropout, Muon, and progressive resizing.

    Recipes for 400 million pairs learn almost nothing from 6,000. The experiments behind this recipe are in `docs/log.md`.
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


def small_vit() -> TrainConfig:
    """A small vision transformer with CLIP's tokenizer for your own photos, which open_clip and Hugging Face can load.

    The settings are those of `small-data` without progressive resizing, because position embeddings fix the image size.
    """
    config = small_data()
    return replace(
        config,
        recipe="small-vit",
        model=preset("photos-vit"),
        schedule=replace(config.schedule, small_first=()),
    )


def recipe_for(
    data: str, *, changes: Mapping[str, Any] | None = None, must_be_small: bool = True
) -> tuple[TrainConfig, str]:
    """Fit `small-data` to the number and size of the images, and to whether they have classes.

    Args:
        data: the data, as `kind:location`.
        changes: settings of the run by dotted path. Those of `data` determine the number of training samples, to which the
            batch size is fitted.
        must_be_small: reject data for which other recipes are better. Set it to False if the user selected `small-data`.

    Returns:
        The config, and a sentence that explains it.

    Raises:
        ConfigError: there are more than 100,000 images, and `must_be_small` is True.
        DataError: the data cannot be read.
    """
    data_changes = {path: value for path, value in (changes or {}).items() if path.startswith("data.")}
    config = override(small_data(), {**data_changes, "data.source": data})
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
        # The captions then consist of the class name, which must not be dropped.
        augment, validation = replace(config.augment, drop_words=0.0), replace(config.validation, metric="zero_shot")
        config = replace(config, augment=augment, validation=validation)
    side = _usual_side(source)
    if side < _TINY_PX:
        schedule = replace(config.schedule, small_first=())
        config = replace(config, model=preset("icons-convnet"), schedule=schedule)
    return config, f"small-data, for {data} holds {num:,} pictures of about {side} px: little data"


def _num_training(source: Source, data: DataConfig) -> int:
    """Number of training samples; an upper bound for more than 100,000 samples, where the batch size is the same."""
    num = len(source)
    if data.train_split != "all" and num <= _SMALL:
        splits = Splits(source, val_fraction=data.val_fraction, rule=data.split_rule)
        num = splits.sizes().get(data.train_split, 0)
    return min(num, data.max_samples or num)


def _batch_size(num: int) -> int:
    """The largest power of two that gives at least four steps per epoch, between 8 and the recipe's batch size.

    With fewer samples than that, the batch contains all samples.
    """
    fitted = int(min(small_data().batch_size, max(8, 1 << max(1, num // 4).bit_length() - 1)))
    return max(2, min(num, fitted))


def _usual_side(source: Source) -> int:
    """The median of the shorter side, in pixels, over nine images that are evenly spaced over the source."""
    sides = []
    for number in range(_NUM_MEASURED):
        with suppress(ImageError):
            sides.append(min(decode(source[number * len(source) // _NUM_MEASURED].image).size))
    return round(median(sides)) if sides else _TINY_PX
