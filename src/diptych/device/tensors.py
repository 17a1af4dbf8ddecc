"""Apply a function to all tensors of nested dataclasses and tuples."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def with_tensors(value: T, change: Callable[[Tensor], Tensor], *, keep: Collection[str] = ()) -> T:
    """A copy of nested dataclasses and tuples with all tensors changed.

    Args:
        value: a tensor, a dataclass or a tuple. Any other value is returned unchanged.
        change: returns the new tensor.
        keep: names of fields that keep their values, at any depth.
    """
    changed: Any = value
    if isinstance(value, Tensor):
        changed = change(value)
    elif isinstance(value, tuple):
        changed = tuple(with_tensors(item, change, keep=keep) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init and field.name not in keep]
        parts = {name: with_tensors(getattr(value, name), change, keep=keep) for name in names}
        changed = replace(value, **parts)
    return changed


def tensors_of(value: object) -> Iterator[Tensor]:
    """All tensors of nested dataclasses and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors_of(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
