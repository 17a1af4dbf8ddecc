"""A filter as SQL: SQLite's and PostgreSQL's, which let the same entries through."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diptych.core.deprecated import renamed_parameter
from diptych.index.filters import NUMBERS, Comparison, Filter, Joined, Not


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a database writes what filters are made of."""

    mark: str
    """Stands for a value."""
    like: str
    """Compares a text with a pattern: without regard to the case of a to z, no sign but % and _ being special."""
    fields: Mapping[str, str]
    """Field to SQL expression. Times are texts such as `2024-05-01 12:00:00`, which sort by time. `caption` is one line."""
    lines: str
    """The rows of a picture's caption lines."""
    has_text: str | None = None
    """True if the captions may contain a text: cheaper than reading their lines. None where reading the lines is as cheap."""


_PATTERN_OR_ESCAPED = re.compile(r'[%_"\\\x00-\x1f]')
"""Characters that stand for others in a pattern, or that JSON writes in another way."""
_LONGEST_TEXT = 1000
"""SQLite refuses patterns of more than 50,000 bytes."""
_PLAIN_JSON = r"replace(replace(replace(captions, '\\', {mark}), '\u0000', ''), {mark}, '\\')"
"""The captions' JSON without NUL, which PostgreSQL's texts cannot contain. `{mark}` is a character that JSON never contains."""
SQLITE = Dialect(
    mark="?",
    like="{text} LIKE ?",
    fields={
        "path": "key",
        "taken": "taken",
        "modified": "datetime(modified_ns / 1000000000, 'unixepoch')",
        "size": "size",
        "width": "width",
        "height": "height",
        "caption": "line.value",
    },
    lines=f"json_each({_PLAIN_JSON.format(mark='char(1)')}) AS line",
    has_text=r"(captions LIKE ? OR instr(captions, '\u0000'))",
)
POSTGRESQL = Dialect(
    mark="%s",
    like="{text} ILIKE %s ESCAPE ''",  # With COLLATE "C", only a to z have a case.
    fields={
        "path": 'key COLLATE "C"',
        "taken": 'taken COLLATE "C"',
        "modified": "to_char(to_timestamp(modified_ns / 1000000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
        ' COLLATE "C"',
        "size": "size",
        "width": "width",
        "height": "height",
        "caption": 'line.value COLLATE "C"',
    },
    lines=f"jsonb_array_elements_text({_PLAIN_JSON.format(mark='chr(1)')}::jsonb) AS line(value)",
)


@dataclass(frozen=True)
class Condition:
    """A part of a statement, and the values of its marks, so that no text of a user is ever part of it."""

    sql: str
    values: tuple[Any, ...]


@renamed_parameter("chosen", "selected")
def to_sql(selected: Filter, dialect: Dialect) -> Condition:
    """A filter as a condition.

    Deep parts come first, and `not` before `not` is dropped, because SQLite's parser stops where about 100 words wait for their
    end: `a AND (b OR (` leaves three words waiting per level, `((` one.

    >>> to_sql(Not(Comparison("path", "like", "%.png")), SQLITE)
    Condition(sql='NOT (key LIKE ?)', values=('%.png',))
    """
    match selected:
        case Comparison():
            return _compare(selected, dialect)
        case Not():
            if isinstance(selected.inner, Not):
                return to_sql(selected.inner.inner, dialect)
            inner = to_sql(selected.inner, dialect)
            return Condition(
                f"NOT {inner.sql}" if isinstance(selected.inner, Joined) else f"NOT ({inner.sql})", inner.values
            )
        case Joined():
            parts = [to_sql(part, dialect) for part in sorted(selected.parts, key=_depth, reverse=True)]
            word = {"and": " AND ", "or": " OR "}[selected.word]
            values = tuple(value for part in parts for value in part.values)
            return Condition(f"({word.join(part.sql for part in parts)})", values)


@renamed_parameter("chosen", "selected")
def where(selected: Filter | None, dialect: Dialect) -> Condition:
    """The clause of a statement; empty without a filter."""
    if selected is None:
        return Condition("", ())
    condition = to_sql(selected, dialect)
    return Condition(f" WHERE ({condition.sql})", condition.values)


def _depth(selected: Filter) -> int:
    match selected:
        case Comparison():
            return 0
        case Not():
            return 1 + _depth(selected.inner)
        case Joined():
            return 1 + max(map(_depth, selected.parts))


def _compare(selected: Comparison, dialect: Dialect) -> Condition:
    """The SQL of a comparison. A comparison with `caption` is true if it is true for any line."""
    condition = _compare_one(selected, dialect)
    if selected.field != "caption":
        return condition
    exists = f"EXISTS (SELECT 1 FROM {dialect.lines} WHERE {condition.sql})"
    text = _contained_text(selected)
    if dialect.has_text is None or not text:
        return Condition(exists, condition.values)
    return Condition(f"({dialect.has_text} AND {exists})", (f"%{text}%", *condition.values))


def _contained_text(selected: Comparison) -> str:
    """The longest text that the JSON of captions contains if the comparison is true; empty if none is known.

    >>> _contained_text(Comparison("caption", "like", 'a "dog" on%the beach'))
    'the beach'
    """
    if selected.comparison not in {"like", "="}:
        return ""
    parts = _PATTERN_OR_ESCAPED.split(str(selected.value))
    return max(parts, key=len)[:_LONGEST_TEXT]


def _compare_one(selected: Comparison, dialect: Dialect) -> Condition:
    field = dialect.fields[selected.field]
    if selected.comparison == "like":
        text = f"CAST({field} AS TEXT)" if selected.field in NUMBERS else field
        return Condition(dialect.like.format(text=text), (str(selected.value),))
    return Condition(f"{field} {selected.comparison} {dialect.mark}", (selected.value,))
