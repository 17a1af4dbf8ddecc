"""Count unusual things in data and how they were handled. Readers count them, and `diptych data audit` lists them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Oddity:
    """One kind of unusual thing, how often it occurred, and its first occurrences.

    >>> str(Oddity("hidden files", "left out", 2, ("cats/._a.jpg",)))
    'hidden files: left out (2; cats/._a.jpg)'
    """

    what: str
    """What occurred, as a plural noun phrase."""
    done: str
    """What the reader did, as a past participle."""
    num: int
    examples: tuple[str, ...] = ()
    """At most three occurrences: paths, lines or keys."""

    def __str__(self) -> str:
        examples = f"; {', '.join(self.examples)}" if self.examples else ""
        return f"{self.what}: {self.done} ({self.num:,}{examples})"


class OddityCounter:
    """Counts oddities while data is read.

    >>> counter = OddityCounter()
    >>> counter.add("empty captions", "left out", "line 3")
    >>> counter.add("empty captions", "left out", "line 9")
    >>> counter.oddities()
    (Oddity(what='empty captions', done='left out', num=2, examples=('line 3', 'line 9')),)
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, done: str, example: str | None = None, *, num: int = 1) -> None:
        """Count one or `num` occurrences; the first three examples are stored."""
        key = (what, done)
        self._counts[key] = self._counts.get(key, 0) + num
        examples = self._examples.setdefault(key, [])
        if example is not None and len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def oddities(self) -> tuple[Oddity, ...]:
        """Return all kinds, in the order of their first occurrence."""
        return tuple(Oddity(*key, num, tuple(self._examples[key])) for key, num in self._counts.items() if num)


def from_plain(plain: Iterable[Sequence[Any]]) -> tuple[Oddity, ...]:
    """Return the oddities with the given fields, as read from JSON.

    >>> from_plain([["links", "followed", 1, ["a"]]])
    (Oddity(what='links', done='followed', num=1, examples=('a',)),)
    """
    return tuple(Oddity(what, done, num, tuple(examples)) for what, done, num, examples in plain)


def merged(groups: Iterable[tuple[Oddity, ...]]) -> tuple[Oddity, ...]:
    """Return the combined oddities of several sources.

    >>> merged([(Oddity("links", "followed", 1),), (Oddity("links", "followed", 2),)])
    (Oddity(what='links', done='followed', num=3, examples=()),)
    """
    counter = OddityCounter()
    for group in groups:
        for oddity in group:
            counter.add(oddity.what, oddity.done, num=oddity.num)
            for example in oddity.examples:
                counter.add(oddity.what, oddity.done, example, num=0)
    return counter.oddities()
