"""Dynamic batching: requests that arrive at about the same time are processed as one batch."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from diptych.server.problems import Overloaded, Problem, too_late

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Waiting(Generic[T, R]):
    """The items of one request, and the future of its results."""

    items: Sequence[T]
    done: "asyncio.Future[list[R | Exception]]"
    num_taken: int = 0
    """Number of items that have left the queue."""
    results: list[R | Exception] = field(default_factory=list)


_Share = tuple[_Waiting[T, R], Sequence[T]]
"""A request, and those of its items that are in a batch."""


class Batcher(Generic[T, R]):
    """A bounded queue in front of a function that is faster on batches than on single items.

    The first request of a batch waits up to `window_s` for others. While a batch is computed, the next one collects requests.
    The items of a request are processed in order and may be split over several batches. A request that is canceled or times
    out leaves the queue at once; the result of a call that is already running is dropped.

    If the function raises on a batch of several requests, it is called again for each request separately, so that only the
    request that causes the error fails.

    Args:
        run: the function. It takes a list of items and returns one result or one exception per item.
        executor: where the function runs.
        batch: maximum number of items per call.
        waiting: maximum number of items in the queue.
        window_s: time in seconds that the first request of a batch waits for others.
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R | Exception]],
        *,
        executor: Executor,
        batch: int,
        waiting: int,
        window_s: float,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._run, self._executor = run, executor
        self._batch, self._max_waiting, self._window_s = batch, waiting, window_s
        self._observe = observe
        self._queue: deque[_Waiting[T, R]] = deque()
        self._num = 0
        self._filled = asyncio.Event()
        self._s_per_item = 0.0
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Number of items in the queue."""
        return self._num

    @property
    def is_running(self) -> bool:
        """Whether the batcher processes its queue."""
        return self._worker is not None and not self._worker.done()

    def start(self) -> None:
        """Start processing the queue in the running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop processing. Requests that are still in the queue fail with status 503."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for waiting in list(self._queue):
            _fail(waiting, Problem(503, "the server is going down"))
        self._queue.clear()
        self._num = 0

    def submit(self, items: Sequence[T], *, timeout_s: float = math.inf) -> Awaitable[list[R | Exception]]:
        """Queue the items of a request.

        Args:
            items: the items.
            timeout_s: maximum time in seconds until all results are there.

        Returns:
            An awaitable of one result per item, in order. A result may be an exception that the function returned.

        Raises:
            Overloaded: too many items are in the queue.
            Problem: the request timed out (503). Raised by the awaitable.
            Exception: the function failed on the items of this request. Raised by the awaitable.
        """
        if self._num + len(items) > self._max_waiting:
            raise Overloaded(f"{self._num} wait", retry_after_s=self._num * self._s_per_item)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[R | Exception]] = loop.create_future()
        if not items:
            done.set_result([])
            return done
        waiting = _Waiting[T, R](items, done)
        self._queue.append(waiting)
        self._num += len(items)
        self._filled.set()
        done.add_done_callback(lambda _: self._leave(waiting))
        if not math.isinf(timeout_s):
            timer = loop.call_later(timeout_s, _fail, waiting, too_late())
            done.add_done_callback(lambda _: timer.cancel())
        return done

    def _leave(self, waiting: _Waiting[T, R]) -> None:
        """Remove the remaining items of an answered request from the queue."""
        if waiting in self._queue:
            self._queue.remove(waiting)
            self._num -= len(waiting.items) - waiting.num_taken

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            if self._num < self._batch and self._window_s > 0:
                await asyncio.sleep(self._window_s)
            shares = self._take()
            if shares:
                await self._compute(shares)

    async def _compute(self, shares: list[_Share[T, R]]) -> None:
        began, num = time.monotonic(), sum(len(some) for _, some in shares)
        self._observe(num)
        if await self._call(shares):
            self._s_per_item = (time.monotonic() - began) / num

    async def _call(self, shares: list[_Share[T, R]]) -> bool:
        """Run the function on a batch and distribute the results to the requests. False if it fails on a single request."""
        items = [item for _, some in shares for item in some]
        try:
            results = list(await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items))
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items")
        except Exception as error:
            if len(shares) == 1:
                _fail(shares[0][0], error)
                return False
            for share in shares:
                if not share[0].done.done():
                    await self._call([share])
            return True
        start = 0
        for waiting, some in shares:
            waiting.results += results[start : start + len(some)]
            start += len(some)
            if len(waiting.results) == len(waiting.items) and not waiting.done.done():
                waiting.done.set_result(waiting.results)
        return True

    def _take(self) -> list[_Share[T, R]]:
        """Take the items of the next batch from the queue, oldest requests first."""
        shares: list[_Share[T, R]] = []
        room = self._batch
        while self._queue and room:
            first = self._queue[0]
            some = first.items[first.num_taken : first.num_taken + room]
            if not first.done.done():  # Otherwise `_leave` is about to remove it.
                shares.append((first, some))
                room -= len(some)
            first.num_taken += len(some)
            self._num -= len(some)
            if first.num_taken == len(first.items):
                self._queue.popleft()
        if not self._queue:
            self._filled.clear()
        return shares


def _fail(waiting: _Waiting[T, R], error: Exception) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
