"""What ranks under a launcher do in a test: train, or fail in one of the ways in which ranks do."""

import os
import signal
import sys
from itertools import count
from pathlib import Path

import torch

from diptych.cli.main import main
from diptych.core.errors import DataError
from diptych.data.batches.batch import Batch
from diptych.device import hardware
from diptych.device.distributed import all_ranks
from diptych.device.launch import joined_ranks, leave
from diptych.models import attention
from diptych.training.step import TrainingStep
from diptych.training.step_result import StepResult

FAILURES = ("error", "bug", "killed")


def _fail(kind: str) -> None:
    """Rank 1 fails in its third step."""
    take_step, numbers = TrainingStep.__call__, count(1)

    def step_or_fail(
        step: TrainingStep, batch: Batch, *, lr: float, seed: int, small_px: int | None = None
    ) -> StepResult:
        result = take_step(step, batch, lr=lr, seed=seed, small_px=small_px)
        if next(numbers) == 3 and all_ranks().rank == 1:
            match kind:
                case "error":
                    raise DataError("the cable was pulled")
                case "bug":
                    raise ZeroDivisionError("a bug")
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
        return result

    TrainingStep.__call__ = step_or_fail  # type: ignore[method-assign, assignment]


def _train_each(folder: Path, kinds: list[str]) -> None:
    """One after another, by the same ranks. Some steps read no value, and their texts are packed in advance, as for a GPU."""
    host_devices, bucketed_devices = hardware.HOST_DEVICES, attention.BUCKETED_DEVICES
    with joined_ranks():
        for kind in kinds:
            is_gpu = "as on a GPU" in kind
            hardware.HOST_DEVICES = frozenset() if is_gpu else host_devices
            attention.BUCKETED_DEVICES = frozenset() if is_gpu else bucketed_devices
            assert main(["train", "--config", str(folder / f"{kind}.yaml"), "--out", str(folder / kind)]) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *words = sys.argv[1:]
    if what == "each":
        _train_each(Path(words[0]), words[1:])
        leave(0)
    if what in FAILURES:
        _fail(what)
    leave(main(words))
