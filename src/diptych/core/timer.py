"""Where the time of a step goes."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds by name.

    On a GPU, CUDA events measure the time of the device. An event is read when the device has reached it, which can be
    several steps after the host recorded it; the host never waits for one.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._on_gpu = device.type == "cuda"
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time what happens within."""
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
        """Count seconds that were measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def total(self) -> dict[str, float]:
        """All seconds so far, by name. Waits for the device."""
        if self._pending:
            torch.cuda.synchronize()
            self.flush()
        return dict(self.seconds)

    def flush(self) -> None:
        """Add the pairs of events that the device has reached; call it once per step. The others stay for a later call."""
        # The device reaches events in the order in which they were recorded.
        while self._pending and self._pending[0][2].query():
            name, begin, end = self._pending.popleft()
            self.add(name, begin.elapsed_time(end) / 1000)
