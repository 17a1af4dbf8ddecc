"""A process that tunes a tiny run: what tests start two of, and kill."""

import sys
import time
from pathlib import Path

import torch

from diptych.core.settings import override
from diptych.training.report.events import StepReport
from diptych.training.validation import Validation
from diptych.tuning.results import write_results
from diptych.tuning.space import Dimension
from diptych.tuning.study import Row
from diptych.tuning.study_folder import create_study_folder, prepare_space
from diptych.tuning.tune import TuneOptions, tune
from tests.conftest import TINY_RUN

RUN = override(TINY_RUN, {"schedule.steps": "30", "checkpoint.steps": "3", "validation.times": "3"})
DIMENSIONS = (
    Dimension(name="lr", fields=("optimizer.lr",), low=1e-4, high=1e-2, log=True),
    Dimension(name="batch_size", fields=("batch_size",), choices=(8, 16)),
)


class Slowly:
    """Says what happens, and gives others time to do something."""

    def __init__(self, seconds_a_step: float) -> None:
        self.seconds_a_step = seconds_a_step

    def on_rows(self, found: list[Row]) -> None:
        """Say which trial runs."""
        for row in found:
            if row.state == "running":
                print(f"running {row.number}", flush=True)  # noqa: T201

    def on_step(self, report: StepReport) -> None:
        """Say it, and wait."""
        print(f"step {report.step}", flush=True)  # noqa: T201
        time.sleep(self.seconds_a_step)

    def on_validation(self, step: int, validation: Validation) -> None:
        """Nothing."""

    def on_message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def work(folder: Path, storage: str | None, *, trials: int, seconds_a_step: float) -> None:
    """Do what is left of the study."""
    space = prepare_space(RUN, DIMENSIONS, print)
    create_study_folder(folder, storage=storage)
    options = TuneOptions(trials=trials, repeats=1, pruner="none", storage=storage, heartbeat_s=5)
    write_results(folder, space, tune(space, folder, options=options, observer=Slowly(seconds_a_step)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]), sys.argv[2] or None, trials=int(sys.argv[3]), seconds_a_step=float(sys.argv[4]))
