"""What tuning may change: names, the fields of a run's config that they stand for, and the values to try."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from diptych.core.errors import ConfigError
from diptych.core.settings import override, to_plain
from diptych.training.config import TrainConfig

Value: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One thing that is tried: fields that take the same value, and which values there are."""

    name: str
    fields: tuple[str, ...]
    """Dotted paths of the run's config."""
    choices: tuple[Value, ...] = ()
    """Values one by one; none where there is a range."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Whether a range is drawn from by order of magnitude."""
    integer: bool = False

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
            raise ConfigError(f"space: {self.name} is drawn by order of magnitude, so its range must begin above 0")

    def holds(self, value: Any) -> bool:
        """Whether it might try this value."""
        if self.choices:
            return any(value == choice and isinstance(value, type(choice)) for choice in self.choices)
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Value, Value]:
        """Of its range."""
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """Dimensions around a run's own settings."""

    base: TrainConfig
    dimensions: tuple[Dimension, ...]
    check: Callable[[TrainConfig], None] = lambda _: None
    """Raises a ConfigError for settings that the data does not allow."""

    def settings(self, values: Mapping[str, Value]) -> TrainConfig:
        """The run with these values of some dimensions.

        Raises:
            ConfigError: they do not go together.
        """
        changes: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.name in values:
                changes |= dict.fromkeys(dimension.fields, values[dimension.name])
        config = override(self.base, changes)
        self.check(config)
        return config

    def own_values(self) -> dict[str, Any]:
        """The base's own value of every dimension."""
        plain = to_plain(self.base)
        return {dimension.name: look_up(plain, dimension.fields[0]) for dimension in self.dimensions}

    def possible(self, dimension: Dimension, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """Its choices that go together with values of others, and with some value of all that are still open."""
        decided = {*values, dimension.name}
        still_open = [other for other in self.dimensions if other.choices and other.name not in decided]
        return tuple(
            choice for choice in dimension.choices if self._can_go_on({**values, dimension.name: choice}, still_open)
        )

    def _can_go_on(self, values: Mapping[str, Value], still_open: Sequence[Dimension]) -> bool:
        """At first with the base's own values of what is open, which most often will do."""
        if self._fits(values):
            return True
        return bool(still_open) and any(
            self._can_go_on({**values, still_open[0].name: choice}, still_open[1:]) for choice in still_open[0].choices
        )

    def _fits(self, values: Mapping[str, Value]) -> bool:
        try:
            self.settings(values)
        except ConfigError:
            return False
        return True


def look_up(plain: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path of plain settings; None where nothing does.

    >>> look_up({"optimizer": {"lr": 0.1}}, "optimizer.lr")
    0.1
    """
    node: Any = plain
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def reduced(space: Space, say: Callable[[str], None]) -> Space:
    """The space without the choices that go with no others; each of these is told, with the reason.

    Raises:
        ConfigError: a dimension names no field of the config, its field does not take its values, or no choice is left.
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
                say(f"{dimension.name} {choice} is not tried: {_reason(space, dimension, choice)}")
        if not left:
            raise ConfigError(
                f"space: none of {list(dimension.choices)} for {dimension.name} goes with the other settings"
            )
        kept.append(replace(dimension, choices=left))
    return replace(space, dimensions=tuple(kept))


def _check_fields(base: TrainConfig, dimension: Dimension) -> None:
    """Each must be a setting: one that exists, and no room of settings."""
    plain = to_plain(base)
    for field in dimension.fields:
        own = look_up(plain, field)
        if isinstance(own, dict):
            raise ConfigError(f"space: {field} holds settings ({', '.join(own)}); name one of them")
        override(base, {field: own})  # Says which are known, if there is none of this name.
        is_of_fractions = not dimension.choices and not dimension.integer
        if is_of_fractions and float not in _types_of(base, field):
            raise ConfigError(
                f"space: {field} takes no fractions, but its range from {dimension.low:g} to {dimension.high:g} does; add "
                "'integer: true', or list choices"
            )


def _types_of(base: TrainConfig, path: str) -> set[Any]:
    """The types that a field of the config takes, the members of a union one by one."""
    *parents, name = path.split(".")
    room: Any = base
    for parent in parents:
        room = getattr(room, parent)
    return set(_members(get_type_hints(type(room))[name]))


def _members(hint: Any) -> Iterator[Any]:
    inner = get_args(hint) if get_origin(hint) in {Union, UnionType} else ()
    yield from (member for part in inner for member in _members(part))
    if not inner:
        yield hint


def _reason(space: Space, dimension: Dimension, choice: Value) -> str:
    try:
        space.settings({dimension.name: choice})
    except ConfigError as error:
        return str(error).removeprefix("config: ")
    return "it goes with no choice of the others"
