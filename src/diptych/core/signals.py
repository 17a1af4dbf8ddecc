"""Ctrl-C and SIGTERM end a run between two steps, so that it can save."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came; the first is noted, a second SIGINT interrupts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def note(_kind: int, _frame: FrameType | None) -> None:
        requested.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for kind in before:
        signal.signal(kind, note)
    try:
        yield requested.is_set
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
