"""A training step on a GPU against the CPU's."""

from dataclasses import replace

import pytest
import torch

from diptych.data.batches.batch import Batch
from diptych.models.clip import CLIP
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.step import TrainingStep
from tests.conftest import TINY_MODEL

pytestmark = pytest.mark.gpu
CONFIG = replace(TINY_MODEL, text=replace(TINY_MODEL.text, heads=1))  # Heads of a width that fits every kernel.


def _batch(size: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(0)
    side = CONFIG.image.image_px
    assert isinstance(side, int)
    rows = torch.arange(size)
    return Batch(
        pixels=torch.randint(256, (size, 3, side, side), generator=generator, dtype=torch.uint8),
        ids=torch.randint(1, 290, (size, 8), generator=generator),
        lengths=torch.randint(3, 9, (size,), generator=generator),
        text_of_row=rows,
        positive_groups=rows,
        positive_keys=rows[:, None],
        keys=tuple(f"key {i}" for i in range(size)),
        captions=tuple(f"caption {i}" for i in range(size)),
    )


def _stepped(device: str, precision: str) -> tuple[list[float], CLIP]:
    """Losses of three steps, and the model after them."""
    torch.manual_seed(1)
    model = CLIP(CONFIG).train().to(device)
    step = TrainingStep(model, build_optimizers(model, OptimizerConfig()), precision=precision)  # type: ignore[arg-type]
    losses = [step(_batch(), lr=1e-3, seed=number).loss for number in range(3)]
    assert set(step.stopwatch.total()) == {"forward", "backward", "optimizer"}
    assert all(seconds > 0 for seconds in step.stopwatch.total().values())
    return losses, model


@pytest.mark.parametrize(
    ("precision", "tolerance", "steps"),
    # The first steps of fp16 are skipped until the scale of the gradients fits.
    [("fp32", 1e-4, 3), ("bf16", 3e-2, 3), ("fp16", 5e-3, 1)],
)
def test_losses_are_those_of_the_cpu(precision: str, tolerance: float, steps: int) -> None:
    exact, _ = _stepped("cpu", "fp32")
    losses, _ = _stepped("cuda", precision)
    assert losses[:steps] == pytest.approx(exact[:steps], abs=tolerance)
