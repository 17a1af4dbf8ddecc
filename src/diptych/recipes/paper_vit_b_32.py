"""The settings of the paper (Radford et al. 2021, tables 18 and 20)."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig


def paper_vit_b_32() -> TrainConfig:
    """The paper's ViT-B/32 with its optimizer and schedule, on Conceptual Captions or the data given by `--data`.

    The paper uses batches of 32,768 pairs. This recipe uses 1,024, encoded 256 at a time; both can be raised.
    """
    return TrainConfig(
        recipe="paper-vit-b-32",
        model=preset("vit-b-32"),
        data=DataConfig(source="cc3m:cc3m"),
        augment=AugmentConfig(crop_area=(0.9, 1.0)),
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2),
        schedule=ScheduleConfig(epochs=32, warmup_steps=2000),
        batch_size=1024,
        micro_batch=256,
    )
