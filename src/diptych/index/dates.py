"""Parse dates and times in filters."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

import numpy as np

DateField: TypeAlias = Literal["taken", "modified"]
"""`taken` is the camera's local time, without a time zone; `modified` is in UTC."""

_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d))?([Zz]|[+-]\d\d:\d\d)?)?)?)?", re.ASCII)
_END_OF_TIME = "9999-12-31 24:00:00"


@dataclass(frozen=True)
class Period:
    """A half-open span of time. Both ends are texts that sort by time, such as `2024-01-31`."""

    first: str
    """Start of the period, inclusive."""
    after: str
    """End of the period, exclusive."""


def parse_period(text: str, field: DateField) -> Period:
    """The year, month, day, minute or second that a text denotes.

    Args:
        text: `2024`, `2024-01`, `2024-01-31`, `2024-01-31 10:00` or `2024-01-31 10:00:00`, with a space or `T` before the time.
            A time for `modified` may end in `Z` or an offset such as `+02:00`; the default is UTC.
        field: the field that the date is compared with.

    Raises:
        ValueError: the text has another form, is not a calendar date, or has a time zone for `taken`.

    >>> parse_period("2024-01-31", "taken")
    Period(first='2024-01-31', after='2024-02-01')
    """
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{field} is a date, {text!r} is not; write 2024-01-31, or '2024-01-31 10:00:00'")
    *numbers, zone = match.groups()
    if zone and field == "taken":
        raise ValueError(f"taken has no time zone, it is the camera's local time; leave out {zone!r}")
    given = [int(number) for number in numbers if number is not None]
    year, month, day, hour, minute, second = [*given, *(0, 1, 1, 0, 0, 0)[len(given) :]]
    try:
        first = datetime(year, month, day, hour, minute, second)
        if zone:
            offset = datetime.fromisoformat(f"2000-01-01T00:00:00{zone.upper()}").utcoffset()
            first = (first.replace(tzinfo=UTC) - (offset or timedelta())).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{field} is a date, {text!r} is not ({error})") from None
    return Period(_written(first), _after(first, len(given)))


def _after(first: datetime, num_parts: int) -> str:
    """The end of the year, month, day, minute or second that starts at `first`."""
    unit = {1: "Y", 2: "M", 3: "D", 5: "m", 6: "s"}[num_parts]
    after = (np.datetime64(first).astype(f"datetime64[{unit}]") + 1).astype("datetime64[s]").item()
    return _written(after) if isinstance(after, datetime) else _END_OF_TIME  # An int is a time after the year 9999.


def _written(moment: datetime) -> str:
    """The text that the databases compare. Midnight becomes the date alone, which sorts before all times of that day."""
    text = moment.isoformat(" ", "seconds")
    return text.removesuffix(" 00:00:00")
