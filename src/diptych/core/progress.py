"""How long work tells how far it is, to whoever wants to know."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

Track: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[], object]]]
"""Called with what is done and how many of it there are; within what it gives, each call is one of them done."""


@contextmanager
def silently(_what: str, _total: int) -> Iterator[Callable[[], object]]:
    """A `Track` that nobody watches."""
    yield lambda: None
