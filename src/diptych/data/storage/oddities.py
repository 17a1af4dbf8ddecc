"""What is unusual in data, and what was done about it: each reader counts what it met, `data audit` lists it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Oddity:
    """One kind of unusual thing, how often it occurred, and the first places.

    >>> str(Oddity("hidden files", "left out", 2, ("cats/._a.jpg",)))
    'hidden files: left out (2; cats/._a.jpg)'
    """

    what: str
    """A plural noun phrase."""
    done: str
    """A past participle: what the reader did."""
    num: int
    examples: tuple[str, ...] = ()
    """At most three places: paths, lines or keys."""

    def __str__(self) -> str:
        places = f"; {', '.join(self.examples)}" if self.examples else ""
        return f"{self.what}: {self.done} ({self.num:,}{places})"


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
        """Count one more, or `num`; the first three examples are kept."""
        key = (what, done)
        self._counts[key] = self._counts.get(key, 0) + num
        examples = self._examples.setdefault(key, [])
        if example is not None and len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def oddities(self) -> tuple[Oddity, ...]:
        """All kinds, in the order in which they first occurred."""
        return tuple(Oddity(*key, num, tuple(self._examples[key])) for key, num in self._counts.items() if num)


def from_plain(plain: Iterable[Sequence[Any]]) -> tuple[Oddity, ...]:
    """The oddities whose fields, as JSON holds them, are given.

    >>> from_plain([["links", "followed", 1, ["a"]]])
    (Oddity(what='links', done='followed', num=1, examples=('a',)),)
    """
    return tuple(Oddity(what, done, num, tuple(examples)) for what, done, num, examples in plain)


def merged(groups: Iterable[tuple[Oddity, ...]]) -> tuple[Oddity, ...]:
    """The oddities of several sources as those of one.

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
