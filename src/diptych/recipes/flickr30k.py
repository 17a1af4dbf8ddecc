"""Recipes for Flickr30k: a small model for a CPU, and two with a ViT-B/16."""

from diptych.data.batches.loader import DataConfig
from diptych.images.augment import AugmentConfig
from diptych.presets import preset
from diptych.training.config import CheckpointConfig, TrainConfig
from diptych.training.optim.build import OptimizerConfig
from diptych.training.optim.schedule import ScheduleConfig


def flickr30k_small() -> TrainConfig:
    """Small images, small towers, a tokenizer trained on the captions, and augmentation to prevent memorizing the images.

    It suits a few thousand captioned photos and a CPU.
    """
    return TrainConfig(
        recipe="flickr30k-small",
        model=preset("photos-small"),
        data=DataConfig(source="flickr30k:flickr30k"),
        augment=AugmentConfig(crop_area=(0.5, 1.0), flip=0.5),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.2),
        schedule=ScheduleConfig(epochs=30, warmup_steps=100),
        batch_size=128,
    )


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
