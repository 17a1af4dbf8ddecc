"""A small CLIP for a few thousand captioned photos and a CPU."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig


def flickr30k_small() -> TrainConfig:
    """Small images, small towers, a tokenizer trained on the captions, and augmentation to prevent memorizing the images."""
    return TrainConfig(
        recipe="flickr30k-small",
        model=preset("photos-small"),
        data=DataConfig(source="flickr30k:flickr30k"),
        augment=AugmentConfig(crop_area=(0.5, 1.0), flip=0.5),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.2),
        schedule=ScheduleConfig(epochs=30, warmup_steps=100),
        batch_size=128,
    )
