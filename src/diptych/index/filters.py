"""What a search is narrowed to: `taken > 2024-01-01 and width >= 800 and not caption like '%dog%'`.

A condition is a field, a comparison and a value; `and`, `or`, `not` and brackets join them. It becomes SQL with its values
apart, so that no text of a user is ever part of a statement.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diptych.core.errors import ConfigError, unknown_name

COLUMNS = {
    "path": "key",
    "taken": "taken",
    "modified": "datetime(modified_ns / 1000000000, 'unixepoch')",
    "size": "size",
    "width": "width",
    "height": "height",
    "caption": "captions",
}
"""By name, the SQL that gives the field. Times are texts as `2024-05-01 12:00:00`, in the order of time."""
_NUMBERS = frozenset({"size", "width", "height"})
_COMPARISONS = ("<=", ">=", "!=", "=", "<", ">", "like")
_TOKEN = re.compile(r"\s*(?:(<=|>=|!=|==|=|<|>|\(|\))|'((?:[^']|'')*)'|\"([^\"]*)\"|([^\s()<>=!'\"]+))")


@dataclass(frozen=True)
class Filter:
    """A condition in SQL, and the values of its question marks."""

    sql: str
    values: tuple[str | float, ...]


class _Token(NamedTuple):
    text: str
    is_quoted: bool
    place: int


def parse_filter(text: str) -> Filter:
    """A condition as SQL.

    Raises:
        ConfigError: it cannot be read; the message says where.

    >>> parse_filter("taken > 2024-01-01 and not (width < 800 or path like '%.png')").sql
    '(taken > ? AND NOT ((width < ? OR key LIKE ?)))'
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

    @property
    def now(self) -> _Token | None:
        """The word that is read next; None at the end."""
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def either(self) -> Filter:
        """Conditions joined by `or`."""
        parts = [self._both()]
        while self._takes("or"):
            parts.append(self._both())
        return _joined(parts, "OR")

    def _both(self) -> Filter:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return _joined(parts, "AND")

    def _one(self) -> Filter:
        if self._takes("not"):
            inner = self._one()
            return Filter(f"NOT ({inner.sql})", inner.values)
        if self._takes("("):
            inner = self.either()
            if not self._takes(")"):
                raise self.error(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Filter:
        name = self._word("a field")
        if name.is_quoted or name.text not in COLUMNS:
            raise ConfigError(f"--where at {name.place + 1}: {unknown_name('field', name.text, COLUMNS)}")
        sign = self._word("a comparison")
        comparison = "=" if sign.text == "==" else sign.text.lower()
        if sign.is_quoted or comparison not in _COMPARISONS:
            raise ConfigError(
                f"--where at {sign.place + 1}: {sign.text!r} is no comparison; known: {', '.join(_COMPARISONS)}"
            )
        value = self._word("a value")
        return Filter(f"{COLUMNS[name.text]} {comparison.upper()} ?", (self._value(name.text, comparison, value),))

    def _value(self, name: str, comparison: str, value: _Token) -> str | float:
        if name not in _NUMBERS or comparison == "like":
            return value.text
        try:
            return float(value.text)
        except ValueError:
            raise ConfigError(f"--where at {value.place + 1}: {name} is a number, {value.text!r} is none") from None

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


def _joined(parts: Sequence[Filter], word: str) -> Filter:
    if len(parts) == 1:
        return parts[0]
    values = tuple(value for part in parts for value in part.values)
    return Filter("(" + f" {word} ".join(part.sql for part in parts) + ")", values)
