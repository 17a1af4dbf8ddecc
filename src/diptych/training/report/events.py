"""Observers of a run: their protocol, and the event log with its curves and samples."""

import json
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diptych.core.address import redacted
from diptych.core.deprecation import RenamedAttribute
from diptych.core.errors import DiptychWarning
from diptych.training.report.event_file import forget_after, read_events
from diptych.training.step_result import StepResult
from diptych.training.validation import Validation

_STEP_SCALARS = (
    *("loss", "image_to_text", "text_to_image", "logit_scale", "lr", "grad_norm", "teacher_loss"),
    *("utilization", "peak_memory_bytes"),
)
"""Values of a step that are shown in TensorBoard; `events.jsonl` contains all of them. A value that is None is left out."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """A training step and the progress of the run after it."""

    step: int
    """Number of completed steps, including this one."""
    epoch: float
    """Passes over the training data so far."""
    progress: float
    """Completed share of the run, within [0, 1]."""
    elapsed_s: float
    """Seconds since the run started, without the time between an interruption and its resumption."""
    seconds_left: float
    """Estimated seconds until the end of the run; infinite before any progress."""
    lr: float
    """Learning rate of the step."""
    pairs_per_s: float
    """Throughput over the last few seconds of training, without validation."""
    data_wait: float
    """Share of training time spent waiting for data, within [0, 1]."""
    utilization: float | None = None
    """Operations per second (`models/flops.py`) divided by the GPU's peak rate, within [0, 1]; None if that is not known."""
    peak_memory_bytes: int | None = None
    """Largest memory that tensors have occupied on this GPU so far; None on other devices."""
    result: StepResult


@runtime_checkable
class Observer(Protocol):
    """Callbacks of a run.

    An exception that a callback raises ends the run, except an OSError: then the observer is removed and the run continues.
    """

    def on_step(self, report: StepReport) -> None:
        """Called after each step."""

    def on_validation(self, step: int, validation: Validation) -> None:
        """Called after each validation; step 0 is the untrained model."""

    def on_message(self, text: str) -> None:
        """Called with each message for the user."""

    def close(self) -> None:
        """Called when the run ends, whether it is finished or not."""


class Observers:
    """A list of observers that are called in order. An observer that raises an OSError is removed, with a message."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._all = list(observers)

    def notify(self, call: Callable[[Observer], None]) -> None:
        """Apply a function to each observer.

        >>> Observers([]).notify(lambda observer: observer.close())
        """
        for observer in tuple(self._all):
            try:
                call(observer)
            except OSError as error:
                self._all.remove(observer)
                reason = error.strerror or error
                self.say(f"{type(observer).__name__} cannot write any more ({reason}); the run goes on without it")

    tell = RenamedAttribute("notify")

    def say(self, text: str) -> None:
        """Send a message to each observer, without the secrets of the addresses in it."""
        text = redacted(text)
        self.notify(lambda observer: observer.on_message(text))


class EventLog:
    """Observer that writes `events.jsonl` (one JSON object per line), TensorBoard files, `curves.png` and `samples.png`.

    Args:
        run: the run folder.
        batch_size: number of pairs in a batch, over all ranks.
        first_step: steps completed before. Events of later steps are removed from an existing log.
        every_steps: interval of logged steps.
    """

    def __init__(self, run: Path, *, batch_size: int, first_step: int = 0, every_steps: int = 5) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415  (takes half a second)

        self._run = run
        self._batch_size = batch_size
        self._every_steps = every_steps
        self._path = run / "events.jsonl"
        self._num_damaged = 0
        self._warn_of_damaged(forget_after(self._path, first_step))
        self._num_damaged = 0  # `forget_after` has removed them.
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(run / "tensorboard"))

    def on_step(self, report: StepReport) -> None:
        """Log the first step and every `every_steps` steps."""
        if report.step % self._every_steps and report.step > 1:
            return
        event = {**vars(report), **report.result.metrics, "skipped": report.result.skipped}
        event = {name: value for name, value in event.items() if name != "result" and value is not None}
        event["ln_n"] = math.log(self._batch_size)
        self._write(report.step, event, tuple(name for name in _STEP_SCALARS if name in event))

    def on_validation(self, step: int, validation: Validation) -> None:
        """Log the validation, and redraw curves and samples."""
        metrics = validation.metrics()
        self._write(step, {"step": step, **metrics}, tuple(metrics))
        if validation.samples is not None:
            self._board.add_histogram("similarity/partners", validation.samples.partners, step)
            self._board.add_histogram("similarity/others", validation.samples.others, step)
            sheet = validation.samples.sheet()
            self._board.add_image("captions", np.asarray(sheet), step, dataformats="HWC")
            sheet.save(self._run / "samples.png")
        self._draw()

    def on_message(self, text: str) -> None:
        """Log the message."""
        self._file.write(json.dumps({"message": text}) + "\n")

    def close(self) -> None:
        """Close all files and redraw the curves. An error in one of these does not prevent the others."""
        with ExitStack() as stack:
            stack.callback(self._draw)
            stack.callback(self._board.close)
            self._file.close()

    def _write(self, step: int, event: dict[str, Any], scalars: tuple[str, ...]) -> None:
        """Write an event to the log, and those of its values that are named in `scalars` to TensorBoard."""
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in event.items()}
        self._file.write(json.dumps(rounded) + "\n")
        for name in scalars:
            tag = f"validation/{name[4:]}" if name.startswith("val_") else f"train/{name}"
            self._board.add_scalar(tag, event[name], step)

    def _draw(self) -> None:
        from diptych.training.report.curves import draw_curves  # noqa: PLC0415  (loads matplotlib)

        log = read_events(self._path)
        self._warn_of_damaged(log.num_damaged)
        events = [event for _, event in log.lines]
        draw_curves(events, self._run / "curves.png", ln_n=math.log(self._batch_size))

    def _warn_of_damaged(self, num: int) -> None:
        """Warn about damaged lines of the log, and again only if their number has grown."""
        if num > self._num_damaged:
            self._num_damaged = num
            text = f"{self._path}: {num} damaged {'line is' if num == 1 else 'lines are'} left out; the run continues"
            warnings.warn(text, DiptychWarning, stacklevel=2)
