"""Checkpoints of a small state, and single steps of a small model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diptych.bundle.folder import load_bundle
from diptych.data.batches.batch import Batch
from diptych.device.distributed import ALONE
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from diptych.training.checkpoint.state import TrainingState
from diptych.training.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.step import TrainingStep

SETTINGS = {"seed": 0, "device": "cpu"}
"""Stands in for the config of a run in checkpoints."""


def progress_at(at: int, **changes: Any) -> Progress:
    """The progress of a run at this step."""
    return replace(Progress(step=at, elapsed_s=1.5, best_metric=0.25, skipped=(("a", "b"),)), **changes)


def save_at(run: Path, state: TrainingState, at: int, **options: Any) -> Path:
    """Write a checkpoint of this step."""
    return save_checkpoint(run, state, progress_at(at), ALONE, config=SETTINGS, **options)


def load_newest(run: Path, state: TrainingState, said: list[str] | None = None) -> Progress:
    """Load the newest intact checkpoint; messages are appended to `said`."""
    return load_checkpoint(run, state, ALONE, config=SETTINGS, on_message=(said if said is not None else []).append)


def batch_of(config: CLIPConfig, *, size: int = 12, distinct: int = 12) -> Batch:
    """A batch of random pictures and texts."""
    generator = np.random.default_rng(0)
    side = config.image.image_px
    assert isinstance(side, int)
    lengths = torch.from_numpy(generator.integers(3, 9, distinct))
    text_of_row = torch.arange(size) % distinct
    return Batch(
        pixels=torch.from_numpy(generator.integers(0, 256, (size, 3, side, side)).astype(np.uint8)),
        ids=torch.from_numpy(generator.integers(1, 290, (distinct, 8))),
        lengths=lengths,
        text_of_row=text_of_row,
        positive_groups=text_of_row.clone(),
        positive_keys=text_of_row[:, None],
        keys=tuple(f"key {i}" for i in range(size)),
        captions=tuple(f"caption {i}" for i in text_of_row.tolist()),
    )


def model_of(config: CLIPConfig, dtype: torch.dtype = torch.float32) -> CLIP:
    """A model with random weights from seed 1."""
    torch.manual_seed(1)
    return CLIP(config).train().to(dtype)


def step_of(model: CLIP, **settings: object) -> TrainingStep:
    """A training step without gradient clipping."""
    optimizers = build_optimizers(model, OptimizerConfig(max_grad_norm=None))
    return TrainingStep(model, optimizers, max_grad_norm=None, **settings)  # type: ignore[arg-type]


def gradients(
    config: CLIPConfig, batch: Batch, dtype: torch.dtype = torch.float32, **settings: object
) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients and loss of one batch, for a fresh model."""
    return gradients_of(step_of(model_of(config, dtype), **settings), batch)


def gradients_of(step: TrainingStep, batch: Batch) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients and loss of the first step that is not skipped."""
    result = step(batch, lr=0.0, seed=5)
    while result.skipped:  # The loss scale of fp16 is still too large.
        result = step(batch, lr=0.0, seed=5)
    named = step.model.named_parameters()
    return {name: p.grad.to_dense().clone() for name, p in named if p.grad is not None}, result.loss


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    """Assert that no gradient differs by more than `tolerance` times the largest absolute gradient of `theirs`."""
    assert ours.keys() == theirs.keys()
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    for name, grad in theirs.items():
        assert float((ours[name] - grad).abs().max()) <= tolerance * largest, name


def first_weights(bundle: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """The initial weights of the run with this seed that wrote the bundle."""
    torch.manual_seed(seed)
    return CLIP(load_bundle(bundle).config).state_dict()


def state_of(step: TrainingStep) -> dict[str, torch.Tensor]:
    """Copies of everything that a step changes: weights, the optimizers' state, the average and its number of updates."""
    found = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    for number, optimizer in enumerate(step.optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            found |= {f"{number} {index} {name}": torch.as_tensor(value).clone() for name, value in values.items()}
    assert step.average is not None
    found |= {f"average {name}": tensor.clone() for name, tensor in step.average.weights.items()}
    return found | {"updates": torch.tensor(step.average.num_updates)}
