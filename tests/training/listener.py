"""An observer of runs that notes what it is told, and does something after a step."""

import signal
from collections.abc import Callable

from diptych.training.report.events import StepReport
from diptych.training.validation import Validation


class Listener:
    """Notes everything; after the step `at` it calls `do`."""

    def __init__(self, at: int | None = None, do: Callable[[], object] = lambda: None) -> None:
        self.at, self.do = at, do
        self.steps: list[StepReport] = []
        self.validations: dict[int, Validation] = {}
        self.messages: list[str] = []
        self.num_closed = 0

    def on_step(self, report: StepReport) -> None:
        """Note the step, and act after it."""
        self.steps.append(report)
        if report.step == self.at:
            self.do()

    def on_validation(self, step: int, validation: Validation) -> None:
        """Note it by its step."""
        self.validations[step] = validation

    def on_message(self, text: str) -> None:
        """Note it."""
        self.messages.append(text)

    def close(self) -> None:
        """Count how often."""
        self.num_closed += 1


def interrupt() -> None:
    """As Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)
