"""Measure the time of the parts of a training step."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

Item = TypeVar("Item")


@runtime_checkable
class _Event(Protocol):
    """The part of `torch.cuda.Event` that a stopwatch uses."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end_event: Any) -> float: ...


class Stopwatch:
    """Accumulates seconds by name.

    On a GPU, CUDA events measure device time. An event is read once the device has reached it, which can be several steps
    after the host recorded it, so timing does not synchronize host and device. Events are reused after they have been read;
    their number is bounded by the length of the device's queue.

    >>> stopwatch = Stopwatch(torch.device("cpu"))
    >>> stopwatch.add("forward", 1.5)
    >>> stopwatch.total()
    {'forward': 1.5}
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._on_gpu = device.type == "cuda"
        self._pending: deque[tuple[str | None, _Event, _Event]] = deque()
        """Name, begin and end of each measurement, in the order in which they ended; the name of an idle time is None."""
        self._unused: list[_Event] = []
        self._step_end: _Event | None = None
        self._idle_s = self._counted_idle_s = 0.0

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        if self._on_gpu:
            self._forget_step_end()
            begin = self._record()
            yield
            self._pending.append((name, begin, self._record()))
            self._forget_step_end()
            return
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def step_begins(self) -> None:
        """Mark the beginning of a training step, before its first operation is queued."""
        if self._on_gpu and self._step_end is not None:
            end, self._step_end = self._step_end, None
            self._pending.append((None, end, self._record()))

    def step_ends(self) -> None:
        """Mark the end of a training step, after its last operation was queued."""
        if self._on_gpu:
            self._forget_step_end()
            self._step_end = self._record()

    @property
    def idle_s(self) -> float:
        """Seconds that the device waited between the end of a step and the beginning of the next; always 0 on a CPU.

        Only steps that the device has reached count. A pause in which `time` measures something else, such as a validation,
        does not count.
        """
        if self._on_gpu:
            self.flush()
        return self._idle_s

    def next_batch(self, batches: Iterator[Item]) -> tuple[Item, float]:
        """Fetch a batch and mark the beginning of a step.

        Returns:
            The batch, and the seconds of waiting, which are also added as `data`. On a CPU they are the time to fetch this
            batch. A GPU may be busy while the host waits, so there they are the time without work between two steps since the
            last call.
        """
        began = time.perf_counter()
        batch = next(batches)
        waited_s = time.perf_counter() - began
        if self._on_gpu:
            idle_s = self.idle_s
            waited_s, self._counted_idle_s = idle_s - self._counted_idle_s, idle_s
        self.add("data", waited_s)
        self.step_begins()
        return batch, waited_s

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def total(self) -> dict[str, float]:
        """Return the accumulated seconds by name. Synchronizes with the device."""
        if self._pending:
            torch.cuda.synchronize()
            self.flush()
        return dict(self.seconds)

    def flush(self) -> None:
        """Add the times of the events that the device has reached; call it once per step."""
        # The device reaches events in the order in which they were recorded.
        while self._pending and self._pending[0][2].query():
            name, begin, end = self._pending.popleft()
            seconds = begin.elapsed_time(end) / 1000
            if name is None:
                self._idle_s += seconds
            else:
                self.add(name, seconds)
            self._unused += (begin, end)

    def _record(self) -> _Event:
        """An event at the current end of the device's queue."""
        if not self._unused:
            self.flush()
        event: _Event = self._unused.pop() if self._unused else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _forget_step_end(self) -> None:
        if self._step_end is not None:
            self._unused.append(self._step_end)
            self._step_end = None
