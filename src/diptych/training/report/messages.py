"""Messages that a run shows before its first step."""

import math
from pathlib import Path

import torch

from diptych.core.deprecation import renamed_names
from diptych.core.program import command
from diptych.data.sources.protocol import Source
from diptych.device.distributed import Ranks
from diptych.models.clip import CLIP
from diptych.models.config import STAGED
from diptych.training.config import TrainConfig
from diptych.training.precision import describe_precision

_MAX_ODDITIES = 3
_OLD_NAMES = {"what_it_does": "describe_run", "where_it_starts": "describe_start"}


__getattr__ = renamed_names(__name__, _OLD_NAMES)


def describe_run(
    config: TrainConfig, model: CLIP, source: Source, *, device: torch.device, run: Path, ranks: Ranks
) -> list[str]:
    """Lines that describe a run: data, model, device, precision on a GPU, batch norms in micro-batches, oddities of the data.

    Args:
        config: config of the run, with a precision other than `auto`.
        model: the model that is trained.
        source: the training samples.
        device: the device of this rank.
        run: the run folder.
        ranks: the ranks of the run.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained, locked = (sum(size for size, is_trained in sizes if is_trained is kind) for kind in (True, False))
    also_locked = f" and {locked:,} locked ones" if locked else ""
    lines = [
        f"Training {config.recipe}: {len(source):,} images of {config.data.source}, {trained:,} parameters{also_locked}, on "
        f"{_device_names(config, device, ranks)}, into {run}"
    ]
    assert config.precision != "auto"
    precision = describe_precision(config.precision, device)
    lines += [] if precision is None else [precision]
    at_once = config.micro_batch or config.batch_size // ranks.size
    if at_once < config.batch_size and isinstance(config.model.image, STAGED):
        why = "with micro_batch" if config.micro_batch else "on several ranks"
        lines.append(
            f"Batch norms normalize over {at_once} images, not {config.batch_size}: {why}, the model does not train exactly "
            "as it would with the whole batch"
        )
    return [*lines, *_oddities(source, config.data.source)]


def _oddities(source: Source, address: str) -> list[str]:
    """One line for each of the first three oddities of the data, and a command that lists the others."""
    lines = [f"Data: {oddity}" for oddity in source.oddities[:_MAX_ODDITIES]]
    more = len(source.oddities) - len(lines)
    return [*lines, f"{more} more kinds of oddities: {command('data', 'audit', address)}"] if more > 0 else lines


def describe_start(config: TrainConfig, *, loss: float, num_images: int) -> str:
    """A line with the loss of the untrained model and, for the loss `clip`, that of uniform guessing: ln(batch size).

    Args:
        config: config of the run.
        loss: validation loss before the first step.
        num_images: number of validation images.
    """
    n = min(config.batch_size, num_images)
    chance = f"; chance is ln {n} = {math.log(n):.2f}" if config.loss.name == "clip" else ""
    return f"Before the first step the validation loss is {loss:.2f}{chance}"


def _device_names(config: TrainConfig, device: torch.device, ranks: Ranks) -> str:
    if ranks.size == 1:
        return str(device)
    return f"{ranks.size} ranks ({device.type}, {config.parallel}, {config.batch_size // ranks.size} pairs each)"
