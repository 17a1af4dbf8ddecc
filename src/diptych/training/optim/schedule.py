"""How long a run lasts and how its learning rate goes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, TypeAlias, assert_never

from diptych.core.errors import ConfigError
from diptych.core.settings import settings

Shape: TypeAlias = Literal["cosine", "linear", "constant", "wsd"]


@settings
class ScheduleConfig:
    """Exactly one of `epochs`, `steps` and `minutes` ends the run; the learning rate is annealed over whichever it is."""

    unsets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "epochs": ("steps", "minutes"),
        "steps": ("epochs", "minutes"),
        "minutes": ("epochs", "steps"),
    }
    """A length in a config file replaces another length of the recipe."""

    epochs: float | None = 32
    """Passes over the training data."""
    steps: int | None = None
    """Optimizer steps."""
    minutes: float | None = None
    """Wall-clock time from the first step, validation included."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    shape: Shape = "cosine"
    """What follows the warm-up: half a cosine or a straight line down to the end; no change; or no change until a straight line
    down over the last `decay_share` (warm-up, stable, decay: Hu et al. 2024)."""
    decay_share: float = 0.2
    """Share of the run over which `wsd` falls, within (0, 1]."""
    final_lr: float = 0.0
    """Share of the peak that is left at the end, within [0, 1]."""
    small_first: tuple[tuple[float, int], ...] = ()
    """Sides in pixels at which the run begins, each with the share of the run at which it ends, as in `[[0.5, 64], [0.8, 80]]`;
    then the model's own. Steps on small pictures are quick (Tan & Le 2021, "EfficientNetV2", sec. 4); and crops show things
    larger than whole pictures do, so a run may end a little below the size of use (Touvron et al. 2019). For an image tower
    that reads any size, `convnet`."""

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
        self._check_shape()
        ends = [0.0, *(end for end, _ in self.small_first)]
        if any(not before < after <= 1 for before, after in pairwise(ends)):
            raise ConfigError(f"schedule.small_first is {self.small_first}; shares of the run must rise within (0, 1]")

    def _check_shape(self) -> None:
        if not 0 < self.decay_share <= 1:
            raise ConfigError(f"schedule.decay_share is {self.decay_share}; it must lie within (0, 1]")
        if not 0 <= self.final_lr <= 1:
            raise ConfigError(f"schedule.final_lr is {self.final_lr}, a share of the peak; it must lie within [0, 1]")
        if self.shape != "wsd" and self.decay_share != ScheduleConfig.decay_share:
            raise ConfigError(
                f"schedule.decay_share is {self.decay_share}, but shape is '{self.shape}'; it belongs to 'wsd': leave it at "
                f"{ScheduleConfig.decay_share}"
            )
        if self.shape == "constant" and self.final_lr != 0:
            raise ConfigError(
                f"schedule.final_lr is {self.final_lr}, but shape is 'constant'; leave it at 0, or take 'wsd'"
            )


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

    def small_px(self, progress: float) -> int | None:
        """The side of the pictures there, where it is not the model's own.

        >>> half = Schedule(ScheduleConfig(small_first=((0.5, 64),)), 50)
        >>> half.small_px(0.49), half.small_px(0.5)
        (64, None)
        """
        return next((px for end, px in self.config.small_first if progress < end), None)

    def lr_factor(self, step: int, progress: float) -> float:
        """What the peak learning rate is multiplied by in the step after `step` steps.

        >>> Schedule(ScheduleConfig(epochs=None, steps=100, warmup_steps=10), 50).lr_factor(4, 0.0)
        0.5
        >>> falling = ScheduleConfig(warmup_steps=0, shape="wsd", decay_share=0.5, final_lr=0.5)
        >>> [Schedule(falling, 50).lr_factor(9, progress) for progress in (0.0, 0.5, 0.75, 1.0)]
        [1.0, 1.0, 0.75, 0.5]
        """
        warmup = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        final = self.config.final_lr
        return warmup * (final + (1 - final) * self._height(progress))

    def _height(self, progress: float) -> float:
        """From 1 down to 0, where the shape falls at all."""
        match self.config.shape:
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * progress))
            case "linear":
                return 1 - progress
            case "wsd":
                return min(1.0, (1 - progress) / self.config.decay_share)
            case "constant":
                return 1.0
            case _:
                assert_never(self.config.shape)
