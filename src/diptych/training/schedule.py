"""How long a run lasts and how its learning rate goes."""

import math
from dataclasses import dataclass
from typing import Literal

from diptych.core.errors import ConfigError
from diptych.core.settings import settings


@settings
class ScheduleConfig:
    """Exactly one of `epochs`, `steps` and `minutes` ends the run; the learning rate is annealed over whichever it is."""

    epochs: float | None = 32
    """Passes over the training data."""
    steps: int | None = None
    """Optimizer steps."""
    minutes: float | None = None
    """Wall-clock time from the first step, validation included."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    shape: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: half a cosine down to zero, or no change."""

    def __post_init__(self) -> None:
        limits = {"epochs": self.epochs, "steps": self.steps, "minutes": self.minutes}
        given = {name: value for name, value in limits.items() if value is not None}
        if len(given) != 1:
            raise ConfigError(
                f"schedule: set exactly one of epochs, steps and minutes; set are: {', '.join(given) or 'none'}"
            )
        name, value = next(iter(given.items()))
        if not 0 < value < math.inf:
            raise ConfigError(f"schedule.{name} is {value}; it must be above 0")
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}; it must be at least 0")


@dataclass(frozen=True)
class Schedule:
    """A schedule over a known number of steps an epoch."""

    config: ScheduleConfig
    steps_per_epoch: int

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None if time ends it."""
        if self.config.steps is not None:
            return self.config.steps
        return None if self.config.epochs is None else max(1, round(self.config.epochs * self.steps_per_epoch))

    def progress(self, step: int, elapsed_s: float) -> float:
        """Share of the run that is done after `step` steps and `elapsed_s` seconds, within [0, 1]."""
        if self.config.minutes is not None:
            return min(1.0, elapsed_s / (60 * self.config.minutes))
        assert self.total_steps is not None
        return min(1.0, step / self.total_steps)

    def lr_factor(self, step: int, progress: float) -> float:
        """What the peak learning rate is multiplied by in the step after `step` steps.

        >>> Schedule(ScheduleConfig(epochs=None, steps=100, warmup_steps=10), 50).lr_factor(4, 0.0)
        0.5
        """
        warmup = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return warmup * (0.5 * (1 + math.cos(math.pi * progress)) if self.config.shape == "cosine" else 1.0)
