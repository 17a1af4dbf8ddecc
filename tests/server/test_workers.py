"""Worker threads: a stuck call is visible, and what nobody waits for any more is not kept."""

import gc
import threading
import weakref

import pytest

from diptych.server.problems import Overloaded
from diptych.server.workers import Workers, busy_threads


class _Panic(BaseException):
    """As Rust libraries raise it."""


def _waits(entered: threading.Event, held: threading.Event) -> None:
    entered.set()
    held.wait(20)


def test_a_stuck_call_is_visible_and_does_not_block_the_end() -> None:
    held, entered = threading.Event(), threading.Event()
    workers = Workers("stuck-test")
    first = workers.submit(_waits, entered, held)
    assert entered.wait(10)
    assert workers.busy_s > 0
    assert busy_threads() == ["stuck-test-0"]
    behind = workers.submit(int)
    workers.shutdown()
    assert behind.cancelled()
    held.set()
    first.result(timeout=10)
    workers.shutdown(wait=True)
    assert workers.busy_s == 0
    with pytest.raises(RuntimeError, match="have ended"):
        workers.submit(int)


def test_a_canceled_job_leaves_the_queue_with_what_it_holds() -> None:
    class Large:
        """Stands for a body."""

    held, entered, large = threading.Event(), threading.Event(), Large()
    kept = weakref.ref(large)
    workers = Workers("queue-test", waiting=1)
    workers.submit(_waits, entered, held)
    assert entered.wait(10)
    waiting = workers.submit(lambda one: None, large)
    with pytest.raises(Overloaded, match="wait for queue-test"):
        workers.submit(int)
    assert waiting.cancel()
    del large, waiting
    gc.collect()
    assert kept() is None
    last = workers.submit(lambda: 7)
    held.set()
    assert last.result(timeout=10) == 7
    workers.shutdown()


def test_a_panic_does_not_end_the_thread() -> None:
    def panics() -> None:
        raise _Panic("index out of bounds")

    workers = Workers("panic-test")
    with pytest.raises(RuntimeError, match="_Panic: index out of bounds"):
        workers.submit(panics).result(timeout=10)
    assert workers.submit(lambda: 7).result(timeout=10) == 7
    workers.shutdown()
