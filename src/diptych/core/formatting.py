"""Convert values to text for people and to plain data for JSON."""

from dataclasses import fields, is_dataclass
from typing import Any


def percent(share: float) -> str:
    """Return a share in percent, with one decimal.

    >>> percent(0.123)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"


def size_text(num_bytes: int) -> str:
    """Return a size as text, in bytes below 10,000 bytes and otherwise in megabytes (10^6 bytes).

    >>> size_text(1200), size_text(34_567_890)
    ('1,200 B', '34.57 MB')
    """
    return f"{num_bytes:,} B" if num_bytes < 10_000 else f"{num_bytes / 1e6:,.2f} MB"


def plain(value: Any) -> Any:
    """Return dataclasses, arrays and paths as values that JSON supports; such values themselves are unchanged.

    >>> plain({1: (2.5, None)})
    {'1': [2.5, None]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
