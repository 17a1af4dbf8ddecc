"""A character-level CLIP on drawn shapes."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig


def shapes() -> TrainConfig:
    """A vision transformer that reads captions letter by letter, on drawn shapes; sizes `shapes-tiny` to `shapes-large`.

    The pictures are whole: a crop would squeeze circles into ellipses.
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
