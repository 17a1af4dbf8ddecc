"""A ViT-B/16 and a bidirectional text tower on Flickr30k."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig


def flickr30k_bert() -> TrainConfig:
    """ViT-B/16 and a bidirectional text tower on Flickr30k, with one random caption per image and epoch, for 55 epochs."""
    return TrainConfig(
        recipe="flickr30k-bert",
        model=preset("bert-vit-b-16"),
        data=DataConfig(source="flickr30k:flickr30k", caption="random"),
        augment=AugmentConfig(crop_area=(0.5, 1.0), flip=0.5),
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.1),
        schedule=ScheduleConfig(epochs=55, warmup_steps=500),
        batch_size=64,
    )
