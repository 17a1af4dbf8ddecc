"""Progress reporting for long operations."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from diptych.core.terminal import open_console

Track: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[], object]]]
"""Type of progress reporters. `track(what, total)` returns a context manager; `total` is None if it is not known.

The context manager yields a function without arguments, which is called once for each finished item.
"""

_PATIENCE_S = 2.0


@contextmanager
def silently(_what: str, _total: int | None) -> Iterator[Callable[[], object]]:
    """A `Track` that shows nothing."""
    yield lambda: None


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[], object]]:
    """A `Track` that shows a progress bar on standard error after two seconds, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.markup import escape  # noqa: PLC0415  (slow to import; most commands do not need it)
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
