"""A ViT-B/16 on all pairs of Flickr30k."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import CheckpointConfig, TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig


def flickr30k_vit_b_16() -> TrainConfig:
    """ViT-B/16 and eight text layers on all pairs of Flickr30k; takes an evening on a GPU.

    An epoch contains every caption once. Captions of the same image are positives of each other if they are in one batch.
    """
    return TrainConfig(
        recipe="flickr30k-vit-b-16",
        model=preset("flickr-vit-b-16"),
        data=DataConfig(source="flickr30k:flickr30k", caption="all"),
        augment=AugmentConfig(crop_area=(0.5, 1.0), flip=0.5, jitter=(0.2, 0.2, 0.2, 0.0)),
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=1e-4),
        schedule=ScheduleConfig(epochs=20),
        checkpoint=CheckpointConfig(epochs=5),
        batch_size=64,
    )
