"""Parse filters of a search, such as `taken > 2024-01-01 and width >= 800 and not caption like '%dog%'`.

A condition consists of a field, an operator and a value. Conditions are combined with `and`, `or`, `not` and parentheses. The
parser returns a tree that does not depend on the database; `dialects.py` translates it to SQL. A date stands for the whole day
(`dates.py`). A comparison with `caption` is true if it is true for any caption line.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

from diptych.core.errors import ConfigError, unknown_name
from diptych.index.dates import DateField, parse_period

Field: TypeAlias = Literal["path", "taken", "modified", "size", "width", "height", "caption"]
Sign: TypeAlias = Literal["<=", ">=", "!=", "=", "<", ">", "like"]
NUMBERS = frozenset({"size", "width", "height"})
_DATES = frozenset(get_args(DateField))
_FIELDS, _SIGNS = get_args(Field), get_args(Sign)
_TOKEN = re.compile(r"\s*(?:(<=|>=|!=|==|=|<|>|\(|\))|'((?:[^']|'')*)'|\"([^\"]*)\"|([^\s()<>=!'\"]+))")
MAX_LEVELS = 32
"""Maximum nesting depth of parentheses and `not`."""
MAX_CONDITIONS = 256
"""Maximum number of comparisons in a filter."""
_INVALID_CHARACTER = re.compile("[\x00\ud800-\udfff]")
"""NUL and surrogates, which databases cannot store. Python decodes invalid UTF-8 on the command line to surrogates."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of a field with a value."""

    field: Field
    comparison: Sign
    value: str | float
    """A number for numeric fields, unless the comparison is `like`."""


@dataclass(frozen=True)
class Not:
    """Negation of a filter. An entry whose field has no value matches neither the filter nor its negation."""

    inner: "Filter"


@dataclass(frozen=True)
class Joined:
    """Two or more filters of which all (`and`) or at least one (`or`) must match."""

    word: Literal["and", "or"]
    parts: tuple["Filter", ...]


Filter: TypeAlias = Comparison | Not | Joined


class _Token(NamedTuple):
    text: str
    is_quoted: bool
    position: int


def parse_filter(text: str) -> Filter:
    """The tree of a filter.

    A filter has at most 32 levels of parentheses and `not`, and at most 256 conditions, because databases have similar limits.

    Raises:
        ConfigError: the filter has a syntax error, or is too deep or too long. The message gives the position.

    >>> parse_filter("size > 1000 and not path like '%.png'").parts[1]
    Not(inner=Comparison(field='path', comparison='like', value='%.png'))
    """
    parser = _Parser(text)
    parsed = parser.parse_or()
    if parser.current is not None:
        raise parser.error("and, or, or the end")
    return parsed


class _Parser:
    """Recursive descent parser with one token of lookahead and one method per level of precedence."""

    def __init__(self, text: str) -> None:
        self.text, self._tokens, self._next = text, list(_tokens(text)), 0
        self._level = self._num_conditions = 0

    @property
    def current(self) -> _Token | None:
        """The next token; None at the end."""
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def parse_or(self) -> Filter:
        """Parse conditions joined by `or`."""
        return self._parse_joined("or", lambda: self._parse_joined("and", self._parse_not))

    def _parse_joined(self, word: Literal["and", "or"], parse_part: Callable[[], Filter]) -> Filter:
        parts = [parse_part()]
        while self._accept(word):
            parts.append(parse_part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _parse_not(self) -> Filter:
        position = 0 if self.current is None else self.current.position
        if self._accept("not"):
            with self._nested(position):
                return Not(self._parse_not())
        if self._accept("("):
            with self._nested(position):
                inner = self.parse_or()
            if not self._accept(")"):
                raise self.error(")")
            return inner
        return self._comparison()

    @contextmanager
    def _nested(self, position: int) -> Iterator[None]:
        if self._level == MAX_LEVELS:
            raise _error(position, f"more than {MAX_LEVELS} levels of brackets and not; simplify the filter")
        self._level += 1
        yield
        self._level -= 1

    def _comparison(self) -> Filter:
        name = self._expect_word("a field")
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise _error(name.position, f"more than {MAX_CONDITIONS} conditions; split the filter, or use like")
        if name.is_quoted or name.text not in _FIELDS:
            raise _error(name.position, unknown_name("field", name.text, _FIELDS))
        sign = self._expect_word("a comparison")
        comparison = "=" if sign.text == "==" else sign.text.lower()
        if sign.is_quoted or comparison not in _SIGNS:
            raise _error(sign.position, f"{sign.text!r} is not a comparison; known: {', '.join(_SIGNS)}")
        value = self._expect_word("a value")
        if name.text in _DATES and comparison != "like":
            return self._date_comparison(cast("DateField", name.text), comparison, value)
        operand = value.text if comparison == "like" else self._value(name.text, value)
        return Comparison(cast("Field", name.text), cast("Sign", comparison), operand)

    def _date_comparison(self, field: DateField, comparison: str, value: _Token) -> Filter:
        """A comparison with a period, such as a day, as comparisons with its start and its end."""
        try:
            period = parse_period(value.text, field)
        except ValueError as error:
            raise _error(value.position, str(error)) from None
        is_before, is_after = Comparison(field, "<", period.first), Comparison(field, ">=", period.after)
        starts, ends = Comparison(field, ">=", period.first), Comparison(field, "<", period.after)
        either: dict[str, Filter] = {"<": is_before, "<=": ends, ">": is_after, ">=": starts}
        either |= {"=": Joined("and", (starts, ends)), "!=": Joined("or", (is_before, is_after))}
        return either[comparison]

    def _value(self, name: str, value: _Token) -> str | float:
        if name not in NUMBERS:
            return value.text
        try:
            number = float(value.text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise _error(value.position, f"{name} is a number, {value.text!r} is not")
        return number

    def _accept(self, word: str) -> bool:
        if self.current is None or self.current.is_quoted or self.current.text.lower() != word:
            return False
        self._next += 1
        return True

    def _expect_word(self, what: str) -> _Token:
        if self.current is None or (not self.current.is_quoted and self.current.text in {"(", ")"}):
            raise self.error(what)
        self._next += 1
        return self._tokens[self._next - 1]

    def error(self, expected: str) -> ConfigError:
        """The error that the current token is not the expected one."""
        position = len(self.text) if self.current is None else self.current.position
        found = "the end" if self.current is None else repr(self.current.text)
        return _error(position, f"expected {expected}, found {found}, in {self.text!r}")


def _tokens(text: str) -> list[_Token]:
    tokens, position = [], 0
    invalid = _INVALID_CHARACTER.search(text)
    if invalid is not None:
        raise _error(invalid.start(), f"{invalid[0]!r} is not a valid character")
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].lstrip()
            raise _error(len(text) - len(rest), f"cannot be read from {rest[:20]!r} on")
        sign, single, double, word = match.groups()
        quoted = single.replace("''", "'") if single is not None else double
        start = position + len(match[0]) - len(match[0].lstrip())
        tokens.append(_Token(quoted if quoted is not None else sign or word, quoted is not None, start))
        position = match.end()
    return tokens


def _error(position: int, message: str) -> ConfigError:
    """An error of a filter at a position, counted from 0."""
    return ConfigError(f"--where at {position + 1}: {message}")
