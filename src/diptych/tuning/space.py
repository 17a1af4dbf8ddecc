"""The search space of tuning: its dimensions, the config fields that they set, and their values."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from diptych.core.deprecation import RenamedAttribute
from diptych.core.errors import ConfigError
from diptych.core.settings import override, to_plain
from diptych.training.config import TrainConfig, look_up

Value: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One dimension of the search space: config fields that get the same value, and the choices or the range of that value.

    >>> Dimension(name="lr", fields=("optimizer.lr",), low=1e-5, high=1e-3, log=True).contains(1e-4)
    True
    """

    name: str
    fields: tuple[str, ...]
    """Dotted paths in the config of the run."""
    choices: tuple[Value, ...] = ()
    """Values to choose from; empty for a range."""
    low: float = 0.0
    """Lower end of the range, inclusive."""
    high: float = 0.0
    """Upper end of the range, inclusive."""
    log: bool = False
    """Whether values of the range are drawn on a logarithmic scale."""
    integer: bool = False
    """Whether the range contains only integers."""

    def __post_init__(self) -> None:
        if self.choices:
            if len(set(map(repr, self.choices))) < len(self.choices):
                raise ConfigError(f"space: {self.name} has a choice twice: {list(self.choices)}")
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ConfigError(
                f"space: {self.name} goes from {self.low:g} to {self.high:g}; both must be finite numbers"
            )
        if self.integer and (self.low % 1 or self.high % 1):
            raise ConfigError(f"space: {self.name} is an integer, but goes from {self.low:g} to {self.high:g}")
        if not self.low < self.high:
            raise ConfigError(f"space: {self.name} has an empty range, from {self.low:g} to {self.high:g}")
        if self.log and self.low <= 0:
            raise ConfigError(f"space: {self.name} has a logarithmic scale, so its range must begin above 0")

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the choices, or lies within the range."""
        if self.choices:
            return any(value == choice and isinstance(value, type(choice)) for choice in self.choices)
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    holds = RenamedAttribute("contains")

    @property
    def ends(self) -> tuple[Value, Value]:
        """The lower and the upper end of the range."""
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """A base config and the dimensions in which trials differ from it."""

    base: TrainConfig
    dimensions: tuple[Dimension, ...]
    check: Callable[[TrainConfig], None] = lambda _: None
    """Function that raises a ConfigError for settings that the data does not allow."""

    def settings(self, values: Mapping[str, Value]) -> TrainConfig:
        """The base config with the given values of some dimensions.

        Raises:
            ConfigError: the values are not compatible with each other or with the data.
        """
        changes: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.name in values:
                changes |= dict.fromkeys(dimension.fields, values[dimension.name])
        config = override(self.base, changes)
        self.check(config)
        return config

    def own_values(self) -> dict[str, Any]:
        """The value of the base config in every dimension."""
        plain = to_plain(self.base)
        return {dimension.name: look_up(plain, dimension.fields[0]) for dimension in self.dimensions}

    def possible(self, dimension: Dimension, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """The choices of a dimension that are compatible with the given values, for some choice in each other dimension."""
        decided = {*values, dimension.name}
        undecided = [other for other in self.dimensions if other.choices and other.name not in decided]
        return tuple(
            choice for choice in dimension.choices if self._can_complete({**values, dimension.name: choice}, undecided)
        )

    def _can_complete(self, values: Mapping[str, Value], undecided: Sequence[Dimension]) -> bool:
        """Whether there are choices of the undecided dimensions that are compatible with the values.

        The base config's values of the undecided dimensions are tried first, because they usually are.
        """
        if self.fault(values) is None:
            return True
        return bool(undecided) and any(
            self._can_complete({**values, undecided[0].name: choice}, undecided[1:]) for choice in undecided[0].choices
        )

    def fault(self, values: Mapping[str, Value]) -> str | None:
        """Why the given values are not compatible with each other or with the data; None if they are."""
        try:
            self.settings(values)
        except ConfigError as error:
            return str(error).removeprefix("config: ")
        return None


def reduced(space: Space, on_message: Callable[[str], None]) -> Space:
    """The space without choices that are incompatible with all choices of other dimensions.

    Args:
        space: the space.
        on_message: called with a message for each choice that is removed.

    Raises:
        ConfigError: the space has no dimensions, a field does not exist or does not accept the values, or no choice is left.
    """
    if not space.dimensions:
        raise ConfigError("space: there is nothing to try")
    kept = []
    for dimension in space.dimensions:
        _check_fields(space.base, dimension)
        if not dimension.choices:
            for end in dimension.ends:
                space.settings({dimension.name: end})
            kept.append(dimension)
            continue
        left = space.possible(dimension, {})
        for choice in dimension.choices:
            if choice not in left:
                fault = space.fault({dimension.name: choice})
                reason = fault or "it is incompatible with all choices of the other dimensions"
                on_message(f"{dimension.name} {choice} is not tried: {reason}")
        if not left:
            raise ConfigError(
                f"space: none of {list(dimension.choices)} for {dimension.name} is compatible with the other settings"
            )
        kept.append(replace(dimension, choices=left))
    return replace(space, dimensions=tuple(kept))


def _check_fields(base: TrainConfig, dimension: Dimension) -> None:
    """Check that each field of a dimension is a single setting that exists and accepts the values."""
    plain = to_plain(base)
    for field in dimension.fields:
        own = look_up(plain, field)
        if isinstance(own, dict):
            raise ConfigError(f"space: {field} contains settings ({', '.join(own)}); name one of them")
        override(base, {field: own})  # Raises a ConfigError with the known names if the field does not exist.
        is_of_fractions = not dimension.choices and not dimension.integer
        if is_of_fractions and float not in _types_of(base, field):
            raise ConfigError(
                f"space: {field} takes no fractions, but its range from {dimension.low:g} to {dimension.high:g} does; add "
                "'integer: true', or list choices"
            )


def _types_of(base: TrainConfig, path: str) -> set[Any]:
    """The types that a field of the config accepts; a union is split into its members."""
    *parents, name = path.split(".")
    section: Any = base
    for parent in parents:
        section = getattr(section, parent)
    hint = get_type_hints(type(section))[name]
    return set(get_args(hint)) if get_origin(hint) in {Union, UnionType} else {hint}
