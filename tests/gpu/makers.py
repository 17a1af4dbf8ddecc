"""Batches, steps and runs for tests on any device."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.core.settings import override
from diptych.data.batches.batch import Batch
from diptych.models.clip import CLIP
from diptych.training.config import TrainConfig
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.optim.ema import WeightAverage
from diptych.training.step import TrainingStep
from tests.conftest import TINY_MODEL, TINY_RUN

CONFIG = replace(TINY_MODEL, text=replace(TINY_MODEL.own_text, heads=1))
"""Heads of a width that fits every kernel."""


def batch_with(lengths: Sequence[int], *, seed: int = 0) -> Batch:
    """Random images, and random texts of these lengths, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    side, rows = CONFIG.image.image_px, torch.arange(len(lengths))
    assert isinstance(side, int)
    return Batch(
        pixels=torch.randint(256, (len(rows), 3, side, side), generator=generator, dtype=torch.uint8),
        ids=torch.randint(1, 290, (len(rows), max(lengths)), generator=generator),
        lengths=torch.tensor(lengths),
        text_of_row=rows,
        positive_groups=rows,
        positive_keys=rows[:, None],
        keys=tuple(f"key {i}" for i in rows.tolist()),
        captions=tuple(f"caption {i}" for i in rows.tolist()),
    )


def step_on(device: torch.device, *, precision: str = "fp32", optimizer: str = "adamw") -> TrainingStep:
    """A training step of a small model with an average of its weights; the same weights on each device."""
    torch.manual_seed(1)
    model = CLIP(CONFIG).train().to(device)
    optimizers = build_optimizers(model, OptimizerConfig(name=optimizer))  # type: ignore[arg-type]
    return TrainingStep(model, optimizers, precision=precision, average=WeightAverage(model, decay=0.9))  # type: ignore[arg-type]


def run_on(device: torch.device, changes: dict[str, str] | None = None) -> TrainConfig:
    """Ten steps with dropout of patches and an average of the weights."""
    common = {"device": device.type, "model.image.patch_dropout": "0.25", "ema": "0.9", "checkpoint.steps": "4"}
    return override(TINY_RUN, common | (changes or {}))


def weights_of(run: Path) -> dict[str, Tensor]:
    """The weights in the bundle of a run."""
    return load_file(run / "bundle" / "model.safetensors")
