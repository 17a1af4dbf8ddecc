"""Measure the time of the parts of a training step."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Accumulates seconds by name.

    On a GPU, CUDA events measure device time. An event is read once the device has reached it, which can be several steps
    after the host recorded it, so timing does not synchronize host and device.

    >>> stopwatch = Stopwatch(torch.device("cpu"))
    >>> stopwatch.add("forward", 1.5)
    >>> stopwatch.total()
    {'forward': 1.5}
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._on_gpu = device.type == "cuda"
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._pending.append((name, begin, end))
            return
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

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
            self.add(name, begin.elapsed_time(end) / 1000)
