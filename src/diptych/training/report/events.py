"""What a run tells while it goes: one small protocol, and the files of the run folder that follow from it."""

import json
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diptych.core.address import redacted
from diptych.core.errors import DiptychWarning
from diptych.training.report.event_file import forget_after, read_events
from diptych.training.step import StepResult
from diptych.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step and where the run stands after it."""

    step: int
    """Steps done, this one included."""
    epoch: float
    """Passes over the training data so far."""
    progress: float
    """Share of the run that is done, within [0, 1]."""
    elapsed_s: float
    seconds_left: float
    lr: float
    pairs_per_s: float
    """Over the last few seconds of training, validation left out."""
    data_wait: float
    """Share of training time spent waiting for data, within [0, 1]."""
    result: StepResult


@runtime_checkable
class Observer(Protocol):
    """Is told what happens; never changes it, but for ending it: what it raises, other than an OSError, goes through."""

    def on_step(self, report: StepReport) -> None:
        """After each step."""

    def on_validation(self, step: int, validation: Validation) -> None:
        """After each validation; step 0 is the untrained model."""

    def on_message(self, text: str) -> None:
        """Something a person should read."""

    def close(self) -> None:
        """The run is over, finished or not."""


class Observers:
    """Several, told one after another. One that cannot write is dropped with a message; the run goes on."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._all = list(observers)

    def tell(self, what: Callable[[Observer], None]) -> None:
        """Tell each."""
        for observer in tuple(self._all):
            try:
                what(observer)
            except OSError as error:
                self._all.remove(observer)
                lost = f"{type(observer).__name__} cannot write any more ({error.strerror or error}); the run goes on without"
                self.say(lost)

    def say(self, text: str) -> None:
        """Give each the message, without the secrets of addresses in it."""
        text = redacted(text)
        self.tell(lambda observer: observer.on_message(text))


class EventLog:
    """`events.jsonl` (one object a logged step or validation), TensorBoard files, `curves.png` and `samples.png`."""

    def __init__(self, run: Path, *, batch_size: int, first_step: int = 0, every_steps: int = 5) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415  (half a second that use need not pay)

        self._run = run
        self._batch_size = batch_size
        self._every_steps = every_steps
        self._path = run / "events.jsonl"
        self._num_damaged = 0
        self._warn_of_damaged(forget_after(self._path, first_step))
        self._num_damaged = 0  # They have been removed.
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(run / "tensorboard"))

    def on_step(self, report: StepReport) -> None:
        """Log every few steps."""
        if report.step % self._every_steps and report.step > 1:
            return
        figures = {**asdict(report), **asdict(report.result), "ln_n": math.log(self._batch_size)}
        del figures["result"]
        shown = ["loss", "image_to_text", "text_to_image", "logit_scale", "lr", "grad_norm", "teacher_loss"]
        if report.result.teacher_loss is None:
            del figures[shown.pop()]
        self._write(report.step, figures, tuple(shown))

    def on_validation(self, step: int, validation: Validation) -> None:
        """Log, and draw curves and samples anew."""
        figures = validation.figures()
        self._write(step, {"step": step, **figures}, tuple(figures))
        if validation.samples is not None:
            self._board.add_histogram("similarity/partners", validation.samples.partners, step)
            self._board.add_histogram("similarity/others", validation.samples.others, step)
            sheet = validation.samples.sheet()
            self._board.add_image("captions", np.asarray(sheet), step, dataformats="HWC")
            sheet.save(self._run / "samples.png")
        self._draw()

    def on_message(self, text: str) -> None:
        """Log."""
        self._file.write(json.dumps({"message": text}) + "\n")

    def close(self) -> None:
        """Draw the curves a last time. Where one of the files cannot be written, the others are closed all the same."""
        with ExitStack() as closing:
            closing.callback(self._draw)
            closing.callback(self._board.close)
            self._file.close()

    def _write(self, step: int, figures: dict[str, Any], scalars: tuple[str, ...]) -> None:
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in figures.items()}
        self._file.write(json.dumps(rounded) + "\n")
        for name in scalars:
            tag = f"validation/{name[4:]}" if name.startswith("val_") else f"train/{name}"
            self._board.add_scalar(tag, figures[name], step)

    def _draw(self) -> None:
        from diptych.training.report.curves import draw_curves  # noqa: PLC0415  (loads matplotlib)

        events = read_events(self._path)
        self._warn_of_damaged(events.num_damaged)
        figures = [event for _, event in events.lines]
        draw_curves(figures, self._run / "curves.png", ln_n=math.log(self._batch_size))

    def _warn_of_damaged(self, num: int) -> None:
        """Say once how many lines of the log are left out, and again only if there are more."""
        if num > self._num_damaged:
            self._num_damaged = num
            text = f"{self._path}: {num} damaged {'line is' if num == 1 else 'lines are'} left out; the run continues"
            warnings.warn(text, DiptychWarning, stacklevel=2)
