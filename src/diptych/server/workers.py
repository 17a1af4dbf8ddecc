"""Executor with daemon threads for blocking calls.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits, so one call that never returns keeps the
process alive. The threads of `Workers` are daemons, and `busy_s` reports how long a call has been running.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from diptych.server.problems import Overloaded

P = ParamSpec("P")
T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]


class WorkerThread(threading.Thread):
    """A daemon thread that runs the jobs of one `Workers`."""

    def __init__(self, name: str, take: Callable[[], _Job | None]) -> None:
        super().__init__(name=name, daemon=True)
        self._take = take
        self._began: float | None = None

    @property
    def busy_s(self) -> float:
        """Duration of the current call in seconds; 0 if the thread is idle."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def run(self) -> None:
        """Run jobs until the executor shuts down."""
        while (job := self._take()) is not None:
            future, call = job
            if not future.set_running_or_notify_cancel():
                continue
            self._began = time.monotonic()
            _settle(future, call)
            self._began = None
            del job, future, call  # Otherwise an idle thread would keep the last request in memory.


class Workers(Executor):
    """An executor with a few daemon threads and a bounded queue.

    Args:
        name: name of the threads, also used in messages.
        num: number of threads.
        waiting: maximum number of jobs in the queue.
    """

    def __init__(self, name: str, *, num: int = 1, waiting: int = 1024) -> None:
        self.name, self._num, self._max_waiting = name, num, waiting
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_over = False
        self._threads: list[WorkerThread] = []

    @property
    def busy_s(self) -> float:
        """Duration of the longest current call in seconds; 0 if all threads are idle."""
        return max((thread.busy_s for thread in self._threads), default=0.0)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Queue a call. A job that is canceled while it waits leaves the queue at once.

        Raises:
            Overloaded: too many jobs are in the queue.
            RuntimeError: the executor has been shut down.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._is_over:
                raise RuntimeError(f"{self.name}: the threads have ended")
            if len(self._jobs) >= self._max_waiting:
                raise Overloaded(f"{len(self._jobs)} requests wait for {self.name}")
            if not self._threads:
                self._threads = [WorkerThread(f"{self.name}-{number}", self._next) for number in range(self._num)]
                for thread in self._threads:
                    thread.start()
            self._jobs.append((future, lambda: fn(*args, **kwargs)))
            self._changed.notify()
        future.add_done_callback(self._forget)
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Stop the threads after their current calls.

        Args:
            wait: whether to wait for the current calls.
            cancel_futures: whether to cancel the jobs in the queue.
        """
        with self._changed:
            self._is_over = True
            left = list(self._jobs) if cancel_futures else []
            self._changed.notify_all()
        for future, _ in left:
            future.cancel()
        if wait:
            for thread in self._threads:
                thread.join()

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._jobs:
                if self._is_over:
                    return None
                self._changed.wait()
            return self._jobs.popleft()

    def _forget(self, future: "Future[Any]") -> None:
        if not future.cancelled():
            return
        with self._changed:
            self._jobs = deque(job for job in self._jobs if job[0] is not future)


def busy_threads() -> list[str]:
    """Names of all worker threads of this process that are running a call."""
    return [thread.name for thread in threading.enumerate() if isinstance(thread, WorkerThread) and thread.busy_s > 0]


def _settle(future: "Future[Any]", call: Callable[[], Any]) -> None:
    try:
        result = call()
    except Exception as error:
        future.set_exception(error)
    except (
        BaseException
    ) as error:  # For example, a panic in a Rust library. It must not end the thread or the event loop.
        failed = RuntimeError(f"{type(error).__name__}: {error}")
        failed.__cause__ = error
        future.set_exception(failed)
    else:
        future.set_result(result)
