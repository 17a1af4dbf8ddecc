"""The recipe of `diptych demo`."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig
from diptych.training.validation import ValidationConfig


def demo() -> TrainConfig:
    """A tiny CLIP model on drawn shapes, which trains in two minutes on two CPU cores.

    Images are not cropped, because a random crop would turn circles into ellipses and cut off shapes. The initial temperature
    is lower than the paper's 0.07, because a run of a thousand steps is too short to learn it.
    """
    return TrainConfig(
        recipe="demo",
        model=preset("shapes-demo"),
        data=DataConfig(source="shapes"),
        augment=AugmentConfig(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0)),
        optimizer=OptimizerConfig(lr=4e-3, weight_decay=0.1),
        schedule=ScheduleConfig(epochs=28, warmup_steps=50),
        batch_size=128,
        validation=ValidationConfig(times=6),
    )
