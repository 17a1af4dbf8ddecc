"""What a search is narrowed to: `taken > 2024-01-01 and width >= 800 and not caption like '%dog%'`.

A condition is a field, a comparison and a value; `and`, `or`, `not` and brackets join them. It is read into a tree that knows
no database; `dialects.py` writes it for one. A date stands for the whole day (`dates.py`). A comparison with `caption` holds
if it holds for any line.
"""

import math
import re
from collections.abc import Iterator, Sequence
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
"""Of brackets and `not` within each other."""
MAX_CONDITIONS = 256
"""Comparisons in one filter."""
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
"""Bytes on the command line that are no UTF-8 come as halves of a pair; no database takes them."""


@dataclass(frozen=True)
class Comparison:
    """A field beside a value."""

    field: Field
    comparison: Sign
    value: str | float
    """A number for a number, unless the comparison is `like`."""


@dataclass(frozen=True)
class Not:
    """What the inner one keeps back; nothing is let through of which it cannot be told."""

    inner: "Filter"


@dataclass(frozen=True)
class Joined:
    """Two or more filters of which all, or any, must let through."""

    word: Literal["and", "or"]
    parts: tuple["Filter", ...]


Filter: TypeAlias = Comparison | Not | Joined


class _Token(NamedTuple):
    text: str
    is_quoted: bool
    place: int


def parse_filter(text: str) -> Filter:
    """A condition as a tree.

    At most 32 levels of brackets and `not`, and 256 conditions: databases have such limits, too.

    Raises:
        ConfigError: it cannot be read, or is too deep or long; the message says where.

    >>> parse_filter("size > 1000 and not path like '%.png'").parts[1]
    Not(inner=Comparison(field='path', comparison='like', value='%.png'))
    """
    parser = _Parser(text)
    found = parser.either()
    if parser.now is not None:
        raise parser.error("and, or, or the end")
    return found


class _Parser:
    """One word ahead, one method a level of binding."""

    def __init__(self, text: str) -> None:
        self.text, self._tokens, self._next = text, list(_tokens(text)), 0
        self._level = self._num_conditions = 0

    @property
    def now(self) -> _Token | None:
        """The word that is read next; None at the end."""
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def either(self) -> Filter:
        """Conditions joined by `or`."""
        parts = [self._both()]
        while self._takes("or"):
            parts.append(self._both())
        return _joined("or", parts)

    def _both(self) -> Filter:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return _joined("and", parts)

    def _one(self) -> Filter:
        place = None if self.now is None else self.now.place
        if self._takes("not"):
            with self._deeper(place):
                return Not(self._one())
        if self._takes("("):
            with self._deeper(place):
                inner = self.either()
            if not self._takes(")"):
                raise self.error(")")
            return inner
        return self._comparison()

    @contextmanager
    def _deeper(self, place: int | None) -> Iterator[None]:
        if self._level == MAX_LEVELS:
            raise ConfigError(
                f"--where at {(place or 0) + 1}: more than {MAX_LEVELS} levels of brackets and not; simplify the filter"
            )
        self._level += 1
        yield
        self._level -= 1

    def _comparison(self) -> Filter:
        name = self._word("a field")
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise ConfigError(
                f"--where at {name.place + 1}: more than {MAX_CONDITIONS} conditions; split the filter, or use like"
            )
        if name.is_quoted or name.text not in _FIELDS:
            raise ConfigError(f"--where at {name.place + 1}: {unknown_name('field', name.text, _FIELDS)}")
        sign = self._word("a comparison")
        comparison = "=" if sign.text == "==" else sign.text.lower()
        if sign.is_quoted or comparison not in _SIGNS:
            raise ConfigError(
                f"--where at {sign.place + 1}: {sign.text!r} is no comparison; known: {', '.join(_SIGNS)}"
            )
        value = self._word("a value")
        if name.text in _DATES and comparison != "like":
            return self._dated(cast("DateField", name.text), comparison, value)
        given = value.text if comparison == "like" else self._value(name.text, value)
        return Comparison(cast("Field", name.text), cast("Sign", comparison), given)

    def _dated(self, field: DateField, comparison: str, value: _Token) -> Filter:
        """A comparison with a day, minute or other period, as comparisons with the start and the end of the period."""
        try:
            period = parse_period(value.text, field)
        except ValueError as error:
            raise ConfigError(f"--where at {value.place + 1}: {error}") from None
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
            raise ConfigError(f"--where at {value.place + 1}: {name} is a number, {value.text!r} is none")
        return number

    def _takes(self, word: str) -> bool:
        if self.now is None or self.now.is_quoted or self.now.text.lower() != word:
            return False
        self._next += 1
        return True

    def _word(self, what: str) -> _Token:
        if self.now is None or (not self.now.is_quoted and self.now.text in {"(", ")"}):
            raise self.error(what)
        self._next += 1
        return self._tokens[self._next - 1]

    def error(self, expected: str) -> ConfigError:
        """Something else stands here."""
        place = len(self.text) if self.now is None else self.now.place
        found = "the end" if self.now is None else repr(self.now.text)
        return ConfigError(f"--where at {place + 1}: expected {expected}, found {found}, in {self.text!r}")


def _tokens(text: str) -> list[_Token]:
    found, place = [], 0
    odd = _NO_TEXT.search(text)
    if odd is not None:
        raise ConfigError(f"--where at {odd.start() + 1}: {odd[0]!r} is no text")
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            rest = text[place:].lstrip()
            raise ConfigError(f"--where at {len(text) - len(rest) + 1}: cannot be read from {rest[:20]!r} on")
        sign, single, double, word = match.groups()
        quoted = single.replace("''", "'") if single is not None else double
        start = place + len(match[0]) - len(match[0].lstrip())
        found.append(_Token(quoted if quoted is not None else sign or word, quoted is not None, start))
        place = match.end()
    return found


def _joined(word: Literal["and", "or"], parts: Sequence[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))
