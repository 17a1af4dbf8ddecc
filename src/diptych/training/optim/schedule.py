"""Length of a run and its learning rate schedule."""

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
    """Length and learning rate schedule. Set exactly one of `epochs`, `steps` and `minutes`."""

    unsets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "epochs": ("steps", "minutes"),
        "steps": ("epochs", "minutes"),
        "minutes": ("epochs", "steps"),
    }
    """A length in a config file replaces a length of the recipe in another unit."""

    epochs: float | None = 32
    """Passes over the training data."""
    steps: int | None = None
    """Optimizer steps."""
    minutes: float | None = None
    """Wall-clock minutes from the first step, including validation."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from zero."""
    shape: Shape = "cosine"
    """Shape after the warm-up: `cosine` or `linear` decay until the end, `constant`, or `wsd`: constant with a linear decay
    over the last `decay_share` of the run (warm-up, stable, decay: Hu et al. 2024)."""
    decay_share: float = 0.2
    """Share of the run over which `wsd` decays, within (0, 1]."""
    final_lr: float = 0.0
    """Learning rate at the end, as a share of the peak, within [0, 1]."""
    small_first: tuple[tuple[float, int], ...] = ()
    """Progressive resizing: pairs of (share of the run, image side in pixels), as in `[[0.5, 64], [0.8, 80]]`. Each size is
    used until its share of the run is done, then the model's own size. Steps on small images are faster (Tan & Le 2021,
    "EfficientNetV2", sec. 4). Random crops make objects appear larger than in whole images, so the run may also end at a size a
    little below that used for inference (Touvron et al. 2019). It requires an image tower that accepts any size, `convnet`."""

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
            raise ConfigError(
                f"schedule.final_lr is {self.final_lr}; it is a share of the peak and must lie within [0, 1]"
            )
        if self.shape != "wsd" and self.decay_share != ScheduleConfig.decay_share:
            raise ConfigError(
                f"schedule.decay_share is {self.decay_share}, but shape is '{self.shape}'; only 'wsd' uses it: leave it at "
                f"{ScheduleConfig.decay_share}"
            )
        if self.shape == "constant" and self.final_lr != 0:
            raise ConfigError(
                f"schedule.final_lr is {self.final_lr}, but shape is 'constant'; leave it at 0, or use 'wsd'"
            )


@dataclass(frozen=True)
class Schedule:
    """A schedule for a given number of steps per epoch."""

    config: ScheduleConfig
    steps_per_epoch: int

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None if the run is limited by time."""
        if self.config.steps is not None:
            return self.config.steps
        return None if self.config.epochs is None else max(1, round(self.config.epochs * self.steps_per_epoch))

    def progress(self, step: int, elapsed_s: float) -> float:
        """Completed share of the run after `step` steps and `elapsed_s` seconds, within [0, 1]."""
        if self.config.minutes is not None:
            return min(1.0, elapsed_s / (60 * self.config.minutes))
        assert self.total_steps is not None
        return min(1.0, step / self.total_steps)

    def small_px(self, progress: float) -> int | None:
        """Image side in pixels at this progress, within [0, 1]; None for the model's own size.

        >>> half = Schedule(ScheduleConfig(small_first=((0.5, 64),)), 50)
        >>> half.small_px(0.49), half.small_px(0.5)
        (64, None)
        """
        return next((px for end, px in self.config.small_first if progress < end), None)

    def lr_factor(self, step: int, progress: float) -> float:
        """Factor of the peak learning rate, within [0, 1], for the step that follows `step` completed steps.

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
        """The decay curve without warm-up: from 1 down to 0, or 1 throughout for `constant`."""
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
