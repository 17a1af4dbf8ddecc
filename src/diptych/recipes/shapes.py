"""A character-level CLIP model on drawn shapes."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig


def shapes() -> TrainConfig:
    """A vision transformer and a character-level text tower on drawn shapes, in sizes from `shapes-tiny` to `shapes-large`.

    Images are not cropped, because a crop would turn circles into ellipses.
    """
    return TrainConfig(
        recipe="shapes",
        model=preset("shapes-tiny"),
        data=DataConfig(source="shapes"),
        augment=AugmentConfig(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0)),
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.1),
        schedule=ScheduleConfig(epochs=30),
        batch_size=64,
    )
