"""Filters give the same result in a folder and in PostgreSQL."""

import pytest

from diptych.index.entry import FileStat
from diptych.index.filters import parse_filter
from diptych.index.protocol import Index
from tests.index.pictures import add, entry, unit


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("width >= 800", [8, 9]),
        ("taken < 2024-01-03", [0, 1]),
        ("taken > '2024-01-09 00:00:00' or path like '%/0.jpg'", [0, 8, 9]),
        ("not (width < 800 and taken >= 2024-01-01)", [8, 9]),
        ('caption like "%CAPTION 3%"', [3]),
        ("size = 4 and width = 400", [4]),
        ("modified < '1970-01-01 00:00:02'", [0, 1]),
        ("width != 0 and not not width <= 100", [1]),
        ("width like '9%' or size like 1", [1, 9]),
        ("width < 250.5 and height < 1", []),
        ("not height < 1 or path = /photos/5.jpg", [5]),
        ("path like '/photos/_.jp_' and path > /photos/7", [7, 8, 9]),
    ],
)
def test_filters_apply_before_ranking(index: Index, text: str, numbers: list[int]) -> None:
    expected = {f"/photos/{number}.jpg" for number in numbers}
    assert {found.key for found in index.entries(parse_filter(text))} == expected
    found = index.search(unit(10)[:1], top=10, selected=parse_filter(text))[0]
    assert {hit.entry.key for hit in found} == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("caption = 'a \"red\" fox'", [0]),
        ("caption = 'second line'", [0]),
        ("caption like '%fox%second%'", []),  # Each line by itself.
        (r"caption = 'C:\photos\new'", [1]),
        (r"caption like 'c:\PHOTOS\%'", [1]),
        (r"caption = 'C:\u0000'", [1]),
        ("caption = 'Grüße\t🦊'", [2]),
        ("caption = 'nul'", [2]),
        ("caption like '%nul'", [2]),
        ("caption like '%[%' or caption like '%,%'", []),  # The brackets and commas of JSON.
        ("caption = 'it''s'", [3]),
        ("caption != 'it''s'", [0, 1, 2]),  # A line that differs.
        ("caption != 'second line'", [0, 1, 2, 3]),
        ("not caption = 'second line'", [1, 2, 3, 4]),  # No line that is equal.
        ("not caption like '%'", [4]),
        ("caption > b and not caption > j", [3]),
        ("caption like '%\\u0000%'", [1]),
        ("size = 3 and not (caption = x or caption like '%IT%')", []),
    ],
)
def test_a_caption_matches_if_any_of_its_lines_does(index: Index, text: str, numbers: list[int]) -> None:
    captions = [
        ('a "red" fox', "second line"),
        ("C:\\photos\\new", "C:\\u0000"),
        ("Grüße\t🦊", "n\0u\0\0l"),
        ("it's",),
        (),
    ]
    index.remove([f"/photos/{number}.jpg" for number in range(10)])
    add(index, [entry(number, captions=lines) for number, lines in enumerate(captions)], {})
    expected = [f"/photos/{number}.jpg" for number in numbers]
    assert [found.key for found in index.entries(parse_filter(text))] == expected
    found = index.search(unit(10)[:1], top=10, selected=parse_filter(text))[0]
    assert sorted(hit.entry.key for hit in found) == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("taken <= 2024-01-31", [0, 1, 2, 3, 4]),
        ("taken < 2024-01-31", [0]),
        ("taken > 2024-01-31", [5]),
        ("taken >= 2024-01-31", [1, 2, 3, 4, 5]),
        ("taken = 2024-01-31", [1, 2, 3, 4]),
        ("taken != 2024-01-31", [0, 5]),
        ("not taken = 2024-01-31", [0, 5]),  # Of number 6 nothing is known.
        ("not taken != 2024-01-31", [1, 2, 3, 4]),
        ("taken = '2024-01-31 10:00'", [3]),
        ("taken > '2024-01-31T10:00'", [4, 5]),
        ("taken > '2024-01-31 10:00:29' and taken < '2024-01-31 10:00:31'", [3]),
        ("taken = '2024-01-31 00:00:00'", [1, 2]),
        ("taken < '2024-01-31 00:00:01'", [0, 1, 2]),
        ("taken = 2024-02", [5]),
        ("taken < 2024", []),
        ("taken <= 2024 and taken <= 9999-12-31", [0, 1, 2, 3, 4, 5]),
        ("taken like '2024-01-31 %'", [2, 3, 4]),
        ("modified <= 2024-01-30", [0]),
        ("modified = 2024-01-31", [1, 2]),
        ("modified = '2024-01-31 01:30:00+01:30'", [1]),
        ("modified >= '2024-01-31T23:59:59Z'", [2, 3, 4, 5, 6]),
        ("modified < '2024-01-30 19:00-05:00'", [0]),
    ],
)
def test_a_date_is_the_whole_day(index: Index, text: str, numbers: list[int]) -> None:
    taken = ["2024-01-30 23:59:59", "2024-01-31", "2024-01-31 00:00:00", "2024-01-31 10:00:30", "2024-01-31 23:59:59"]
    midnight = 1706659200  # 2024-01-31 00:00:00 in UTC.
    modified = [midnight - 1, midnight, midnight + 86399, *[midnight + 86400] * 4]
    entries = [
        entry(number, taken=time, stamp=FileStat(size=1, modified_ns=second * 10**9 + 5))
        for number, (time, second) in enumerate(zip([*taken, "2024-02-01", None], modified, strict=True))
    ]
    index.remove([f"/photos/{number}.jpg" for number in range(10)])
    add(index, entries, {})
    expected = [f"/photos/{number}.jpg" for number in numbers]
    assert [found.key for found in index.entries(parse_filter(text))] == expected


def _nested(levels: int, inner: str, *, by: str = "") -> str:
    """The inner condition within as many brackets; each level keeps its meaning, or with `not` negates it."""
    for level in range(levels):
        inner = f"width >= 0 and {by}({inner})" if level % 2 else f"width < 0 or {by}({inner})"
    return inner


def _bushy(levels: int) -> str:
    if not levels:
        return "LEAF"
    return f"({_bushy(levels - 1)} {'and' if levels % 2 else 'or'} {_bushy(levels - 1)})"


@pytest.mark.parametrize(
    "text",
    [
        _nested(32, "width >= 800"),
        _nested(16, "width >= 800", by="not "),
        "not " * 32 + "width >= 800",
        "(" * 32 + "width >= 800" + ")" * 32,
        " or ".join(["width >= 800"] * 256),
        _nested(25, _bushy(7).replace("LEAF", "width >= 800")),
        _nested(12, _bushy(7).replace("LEAF", "not width < 800"), by="not "),
        _nested(32, "caption = 'caption 8' or taken = 2024-01-10"),
        " or ".join(["caption like '%8'", "taken = 2024-01-10"] * 128),
        _nested(25, _bushy(7).replace("LEAF", "caption >= 'caption 8'")),
    ],
    ids=[
        *["brackets", "brackets and not", "not", "brackets alone", "long", "bushy", "bushy with not"],
        *["captions and dates in brackets", "many captions and dates", "bushy with captions"],
    ],
)
def test_the_deepest_and_longest_filters_work(index: Index, text: str) -> None:
    assert {found.key for found in index.entries(parse_filter(text))} == {"/photos/8.jpg", "/photos/9.jpg"}
    assert len(index.search(unit(10)[:1], top=10, selected=parse_filter(text))[0]) == 2
