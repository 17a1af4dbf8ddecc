"""What a run says of itself before it begins."""

import math
from pathlib import Path

import torch

from diptych.core.distributed import Ranks
from diptych.core.program import command
from diptych.data.sources.protocol import Source
from diptych.models.clip import CLIP
from diptych.models.config import STAGED
from diptych.training.config import TrainConfig

_MAX_ODDITIES = 3


def what_it_does(
    config: TrainConfig, model: CLIP, source: Source, *, device: torch.device, run: Path, ranks: Ranks
) -> list[str]:
    """Model, data and device in a line; what is not as it would be with the whole batch at once; and oddities of the data."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained, locked = (sum(size for size, moves in sizes if moves is kind) for kind in (True, False))
    also_locked = f" and {locked:,} locked ones" if locked else ""
    lines = [
        f"Training {config.recipe}: {len(source):,} images of {config.data.source}, {trained:,} parameters{also_locked}, on "
        f"{_where(config, device, ranks)}, into {run}"
    ]
    at_once = config.micro_batch or config.batch_size // ranks.size
    if at_once < config.batch_size and isinstance(config.model.image, STAGED):
        why = "with micro_batch" if config.micro_batch else "on several ranks"
        lines.append(
            f"Batch norms see {at_once} pictures at a time, not {config.batch_size}: {why}, the model does not train exactly "
            "as it would with the whole batch"
        )
    return [*lines, *_oddities(source, config.data.source)]


def _oddities(source: Source, place: str) -> list[str]:
    """A line for each of the first oddities of the data, and what lists the others."""
    lines = [f"Data: {oddity}" for oddity in source.oddities[:_MAX_ODDITIES]]
    more = len(source.oddities) - len(lines)
    return [*lines, f"{more} more kinds of oddities: {command('data', 'audit', place)}"] if more > 0 else lines


def where_it_starts(config: TrainConfig, *, loss: float, num_images: int) -> str:
    """The untrained model's loss beside that of knowing nothing."""
    n = min(config.batch_size, num_images)
    nothing = f"; knowing nothing is ln {n} = {math.log(n):.2f}" if config.loss.name == "clip" else ""
    return f"Before the first step the validation loss is {loss:.2f}{nothing}"


def _where(config: TrainConfig, device: torch.device, ranks: Ranks) -> str:
    if ranks.size == 1:
        return str(device)
    return f"{ranks.size} ranks ({device.type}, {config.parallel}, {config.batch_size // ranks.size} pairs each)"
