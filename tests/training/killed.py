"""Runs that are killed: `python -m tests.training.killed FOLDER SEED` trains once without a stop, and once with all kills."""

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diptych.core.settings import override
from diptych.training import run as training_run
from diptych.training.checkpoint import manager
from diptych.training.report import curves
from diptych.training.report.events import StepReport
from diptych.training.run_folder import CONFIG
from tests.conftest import TINY_RUN
from tests.training.listener import Listener

KILLED_RUN = override(
    TINY_RUN,
    {
        "model.image.patch_dropout": "0.25",
        "model.text.dropout": "0.1",
        "augment.jitter": "[0.2, 0.2, 0.2, 0.1]",
        "augment.erase": "0.25",
        "schedule.steps": "none",
        "schedule.epochs": "6",
        "validation.times": "8",
        "checkpoint.steps": "4",
        "micro_batch": "8",
        "precision": "fp16",
        "ema": "0.99",
    },
)


class Kill(NamedTuple):
    """SIGKILL, so long after a session did something for the nth time."""

    phase: str
    times: int
    delay_s: float
    workers: int


def _draw_kills(seed: int) -> list[Kill]:
    """Twenty, over all that a session does. Those at bundles come last: which validation writes one is not known."""
    draw = random.Random(seed)
    phases = ["start"] * 4 + ["step"] * 6 + ["validation"] * 4 + ["checkpoint"] * 4
    draw.shuffle(phases)
    longest_s = {"start": 0.4, "step": 0.04, "validation": 0.1, "checkpoint": 0.04, "bundle": 0.015}
    return [
        Kill(
            phase,
            {"step": draw.randint(1, 6), "checkpoint": draw.randint(1, 2)}.get(phase, 1),
            draw.uniform(0, longest_s[phase]),
            workers=int(draw.random() < 0.3),
        )
        for phase in [*phases, "bundle", "bundle"]
    ]


class _Steps(Listener):
    """Says when a step was taken."""

    def __init__(self, mark: Callable[[str], None]) -> None:
        super().__init__()
        self.mark = mark

    def on_step(self, report: StepReport) -> None:
        """Say it."""
        self.mark("step")


def _session(run: Path, workers: int, pipe: int) -> None:
    """Train in this process, as the command would; what begins is said on the pipe."""

    def mark(phase: str) -> None:
        os.write(pipe, f"{phase}\n".encode())

    def marked(phase: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            mark(phase)
            return action(*args, **options)

        return call

    vars(curves)["draw_curves"] = lambda *_, **__: None  # Drawing takes longer than ten steps do.
    vars(training_run)["validate"] = marked("validation", vars(training_run)["validate"])
    for name, phase in (("save_checkpoint", "checkpoint"), ("save_bundle", "bundle")):
        vars(manager)[name] = marked(phase, vars(manager)[name])
    config = override(KILLED_RUN, {"data.workers": str(workers)})
    mark("start")
    training_run.train(config, run, resume=(run / CONFIG).is_file(), observers=[_Steps(mark)])


def _fork(run: Path, workers: int) -> tuple[int, int]:
    """A process of its own that need not import PyTorch anew; its id, and where it says what it does."""
    ours, theirs = os.pipe()
    process = os.fork()
    if process:
        os.close(theirs)
        return process, ours
    os.close(ours)
    code = 1
    try:
        _session(run, workers, theirs)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        os._exit(code)


def _kill_at(process: int, marks: int, kill: Kill) -> None:
    """Wait for its moment, or for the session's end."""
    seen = b""
    while seen.count(f"{kill.phase}\n".encode()) < kill.times:
        readable, _, _ = select.select([marks], [], [], 60)
        assert readable, f"nothing happened for a minute, after {seen!r}"
        more = os.read(marks, 4096)
        if not more:
            return  # Finished, or failed; its status says which.
        seen += more
    time.sleep(kill.delay_s)
    os.kill(process, signal.SIGKILL)  # Nobody else waits for it, so that the id is its own even if it has ended.


def drive(folder: Path, seed: int) -> None:
    """Train once without a stop, and once with all the kills; print how each session ended."""
    torch.set_num_threads(1)
    for name in ("torch.utils.tensorboard.writer", "diptych.training.checkpoint.tensors"):
        import_module(name)  # What training imports when it first needs it: once here, not in each session.
    endings: list[int] = []
    for kill in [None, *_draw_kills(seed), None]:
        run = folder / ("killed" if endings else "whole")
        process, marks = _fork(run, kill.workers if kill else 0)
        if kill:
            _kill_at(process, marks, kill)
        endings.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        os.close(marks)
    print(json.dumps(endings))  # noqa: T201


if __name__ == "__main__":
    drive(Path(sys.argv[1]), int(sys.argv[2]))
