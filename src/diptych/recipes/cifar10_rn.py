"""A small ModifiedResNet on CIFAR-10, with captions made from class names."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig
from diptych.training.validation import ValidationConfig


def cifar10_rn() -> TrainConfig:
    """A small ResNet and six text layers on CIFAR-10, with five caption templates and zero-shot accuracy after every epoch.

    Images of the same class are positives of each other, because a batch of 32 contains each of the ten classes about three
    times.
    """
    return TrainConfig(
        recipe="cifar10-rn",
        model=preset("cifar10-rn"),
        data=DataConfig(source="cifar10", positives="class"),
        augment=AugmentConfig(pad_px=4, flip=0.5),
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.01),
        schedule=ScheduleConfig(epochs=50),
        validation=ValidationConfig(epochs=1, metric="zero_shot"),
        batch_size=32,
    )
