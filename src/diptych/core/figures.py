"""Figures as people read them, and as files for programs hold them."""

from dataclasses import fields, is_dataclass
from typing import Any


def percent(share: float) -> str:
    """A share as people read it.

    >>> percent(0.123)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"


def plain(value: Any) -> Any:
    """Dataclasses, arrays and paths as what JSON has; what it has already stays as it is.

    >>> plain({1: (2.5, None)})
    {'1': [2.5, None]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inside) for inside in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
