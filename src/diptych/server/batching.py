"""Requests that come together go through the model together."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from diptych.server.problems import Overloaded, Problem

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Waiting(Generic[T, R]):
    """One request's things, and where their results are awaited."""

    items: Sequence[T]
    until: float
    done: "asyncio.Future[list[R]]"
    results: list[R] = field(default_factory=list)


class Batcher(Generic[T, R]):
    """A bounded queue before one function that is better called with many things than with one.

    The first that comes waits a moment for others; while a batch is computed the next one gathers. A request's things are
    taken in order and may be parted among batches. Whose time is over before its turn is not computed any more.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        executor: Executor,
        batch: int,
        waiting: int,
        window_s: float,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._run, self._executor = run, executor
        self._batch, self._most, self._window_s = batch, waiting, window_s
        self._observe = observe
        self._queue: deque[_Waiting[T, R]] = deque()
        self._num = 0
        self._filled = asyncio.Event()
        self._s_each = 0.0
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Things that wait."""
        return self._num

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End; who still waits is told so."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for waiting in self._queue:
            if not waiting.done.done():
                waiting.done.set_exception(Problem(503, "the server is going down"))
        self._queue.clear()
        self._num = 0

    def submit(self, items: Sequence[T], *, timeout_s: float) -> Awaitable[list[R]]:
        """One result for each thing, in order.

        Raises:
            Overloaded: too many wait.
            Problem: its time is over (503), or the function failed on its batch.
        """
        if self._num + len(items) > self._most:
            raise Overloaded(f"{self._num} wait", retry_after_s=self._num * self._s_each)
        done: asyncio.Future[list[R]] = asyncio.get_running_loop().create_future()
        if not items:
            done.set_result([])
            return done
        self._queue.append(_Waiting(items, time.monotonic() + timeout_s, done))
        self._num += len(items)
        self._filled.set()
        return done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            if self._num < self._batch and self._window_s > 0:
                await asyncio.sleep(self._window_s)
            taken = self._take()
            items = [item for _, some in taken for item in some]
            if not items:
                continue
            began = time.monotonic()
            self._observe(len(items))
            try:
                results = list(await loop.run_in_executor(self._executor, self._run, items))
            except Exception as error:
                self._fail(taken, error)
                continue
            self._s_each = (time.monotonic() - began) / len(items)
            self._hand_out(taken, results)

    def _take(self) -> list[tuple[_Waiting[T, R], Sequence[T]]]:
        """The next things, from the requests that came first; those that nobody waits for any more are dropped."""
        taken: list[tuple[_Waiting[T, R], Sequence[T]]] = []
        room, now = self._batch, time.monotonic()
        while self._queue and room:
            first = self._queue[0]
            begun = len(first.results) + sum(len(some) for waiting, some in taken if waiting is first)
            left = first.items[begun:]
            if first.done.done() or now > first.until:
                if not first.done.done():
                    first.done.set_exception(Problem(503, "it took too long", headers={"Retry-After": "1"}))
                self._num -= len(left)
                self._queue.popleft()
                continue
            some = left[:room]
            taken.append((first, some))
            room -= len(some)
            self._num -= len(some)
            if len(some) == len(left):
                self._queue.popleft()
        if not self._queue:
            self._filled.clear()
        return taken

    def _hand_out(self, taken: list[tuple[_Waiting[T, R], Sequence[T]]], results: list[R]) -> None:
        place = 0
        for waiting, some in taken:
            waiting.results += results[place : place + len(some)]
            place += len(some)
            if len(waiting.results) == len(waiting.items) and not waiting.done.done():
                waiting.done.set_result(waiting.results)

    def _fail(self, taken: list[tuple[_Waiting[T, R], Sequence[T]]], error: Exception) -> None:
        for waiting, _ in taken:
            if not waiting.done.done():
                waiting.done.set_exception(error)
