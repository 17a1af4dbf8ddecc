"""Filters are read, or refused at a place."""

import pytest

from diptych.core.errors import ConfigError
from diptych.index.filters import Comparison, Joined, Not, parse_filter


def test_not_binds_before_and_and_before_or() -> None:
    width, size, path = Comparison("width", ">", 3.0), Comparison("size", "=", 1.0), Comparison("path", "!=", "x y")
    text = "not width > 3 and size == 1 or path != 'x y'"
    assert parse_filter(text) == Joined("or", (Joined("and", (Not(width), size)), path))
    text = "NOT (width > 3 AND (size = 1 OR path != 'x y'))"
    assert parse_filter(text) == Not(Joined("and", (width, Joined("or", (size, path)))))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("widht > 3", "at 1: unknown field 'widht'; did you mean 'width'"),
        ("width >", "at 8: expected a value, found the end"),
        ("width 3", "at 7: '3' is not a comparison"),
        ("width > wide", "at 9: width is a number, 'wide' is not"),
        ("width > nan", "at 9: width is a number, 'nan' is not"),
        ("width > 3 height < 2", "at 11: expected and, or, or the end"),
        ("(width > 3", "at 11: expected \\)"),
        ("", "at 1: expected a field, found the end"),
        ("taken > yesterday", "at 9: taken is a date, 'yesterday' is not; write 2024-01-31, or '2024-01-31 10:00:00'"),
        (
            "width > 3 and modified < 2024-02-30",
            r"at 26: modified is a date, '2024-02-30' is not \(day is out of range",
        ),
        ("modified = '2024-01-31 25:00'", "at 12: modified is a date, .*hour must be in"),
        ("modified = 2024-1-31", "at 12: modified is a date"),
        ("taken = 20240131", "at 9: taken is a date"),
        ("taken = ''", "at 9: taken is a date"),
        ("taken = 0000-01-01", "at 9: taken is a date"),
        ("taken = ２０２４", "at 9: taken is a date"),
        ("taken > '2024-01-31 10:00Z'", "at 9: taken has no time zone, it is the camera's local time; leave out 'Z'"),
        ("modified > '2024-01-31 10:00+25:00'", "at 12: modified is a date"),
        ("modified > '0001-01-01 00:00+01:00'", "at 12: modified is a date"),
        ("path = 'x", "at 8: cannot be read"),
        ("path = caf\udce9", r"at 11: '\\udce9' is not a valid character"),
        ("width > 3; DROP TABLE entries", "at 9: width is a number, '3;' is not"),
    ],
)
def test_filters_that_do_not_parse(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^--where {says}"):
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not " * 33 + "width > 3", r"at 129: more than 32 levels"),
        ("(" * 33 + "width > 3" + ")" * 33, "at 33: more than 32 levels"),
        ("not (" * 5000 + "width > 3", "more than 32 levels"),
        ("(" * 900 + "width > 3" + ")" * 900, "more than 32 levels"),
        (" or ".join(["width > 3"] * 257), "more than 256 conditions"),
    ],
    ids=range(5),
)
def test_filters_that_are_too_deep_or_long(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^--where .*{says}"):
        parse_filter(text)
