"""Translate filters to the SQL of SQLite and of PostgreSQL. Both select the same entries."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diptych.index.filters import NUMBERS, Comparison, Filter, Joined, Not


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a database writes the parts of a filter."""

    placeholder: str
    """Placeholder of a value in a statement."""
    like: str
    """Compares a text with a pattern. The case of a to z is ignored, and only % and _ are wildcards."""
    fields: Mapping[str, str]
    """SQL expression by field. Times are texts such as `2024-05-01 12:00:00`, which sort by time. `caption` is one line."""
    lines: str
    """Table expression whose rows are the caption lines of a picture."""
    has_text: str | None = None
    """Condition that is true if the captions may contain a text. It is cheaper than reading their lines; None if it is not."""


_PATTERN_OR_ESCAPED = re.compile(r'[%_"\\\x00-\x1f]')
"""Wildcards of a pattern, and characters that JSON escapes."""
_LONGEST_TEXT = 1000
"""Maximum length of the text in `has_text`. SQLite rejects patterns of more than 50,000 bytes."""
_PLAIN_JSON = r"replace(replace(replace(captions, '\\', {quoted}), '\u0000', ''), {quoted}, '\\')"
"""The JSON of the captions without NUL, which PostgreSQL does not allow in texts. `{quoted}` is a character that JSON never
contains."""
_NUMBERS = {name: name for name in NUMBERS}
SQLITE = Dialect(
    placeholder="?",
    like="{text} LIKE ?",
    fields={
        "path": "key",
        "taken": "taken",
        "modified": "datetime(modified_ns / 1000000000, 'unixepoch')",
        "caption": "line.value",
        **_NUMBERS,
    },
    lines=f"json_each({_PLAIN_JSON.format(quoted='char(1)')}) AS line",
    has_text=r"(captions LIKE ? OR instr(captions, '\u0000'))",
)
POSTGRESQL = Dialect(
    placeholder="%s",
    like="{text} ILIKE %s ESCAPE ''",  # With COLLATE "C", only a to z have a case.
    fields={
        "path": 'key COLLATE "C"',
        "taken": 'taken COLLATE "C"',
        "modified": "to_char(to_timestamp(modified_ns / 1000000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
        ' COLLATE "C"',
        "caption": 'line.value COLLATE "C"',
        **_NUMBERS,
    },
    lines=f"jsonb_array_elements_text({_PLAIN_JSON.format(quoted='chr(1)')}::jsonb) AS line(value)",
)


@dataclass(frozen=True)
class Condition:
    """A part of a statement, and the values of its placeholders. The statement never contains text from a user."""

    sql: str
    values: tuple[Any, ...]


def to_sql(selected: Filter, dialect: Dialect) -> Condition:
    """The SQL condition of a filter.

    Deep parts come first, and double negations are dropped, because SQLite's parser has a stack of about 100 tokens. The form
    `a AND (b OR (` takes three of them per level, and `((` takes one.

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


def where(selected: Filter | None, dialect: Dialect) -> Condition:
    """The WHERE clause of a filter, with a leading space; empty if `selected` is None."""
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
    """The longest text that the JSON of the captions must contain for the comparison to be true; empty if none is known.

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
    return Condition(f"{field} {selected.comparison} {dialect.placeholder}", (selected.value,))
