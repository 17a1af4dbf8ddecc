"""How long work tells how far it is, to whoever wants to know."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from diptych.core.terminal import open_console

Track: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[], object]]]
"""Called with what is done and how many of it there are, if that is known; within what it gives, each call is one done."""

_PATIENCE_S = 2.0


@contextmanager
def silently(_what: str, _total: int | None) -> Iterator[Callable[[], object]]:
    """A `Track` that nobody watches."""
    yield lambda: None


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[], object]]:
    """A `Track` that shows a bar on standard error, on a terminal alone, once the work has taken two seconds."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.markup import escape  # noqa: PLC0415  (only who waits needs it)
    from rich.progress import Progress  # noqa: PLC0415

    shown = Progress(console=open_console(stderr=True), transient=True)
    task = shown.add_task(escape(what), total=total)
    show_at = time.monotonic() + _PATIENCE_S

    def advance() -> None:
        shown.advance(task)
        if not shown.live.is_started and time.monotonic() > show_at:
            shown.start()

    try:
        yield advance
    finally:
        if shown.live.is_started:
            shown.stop()
