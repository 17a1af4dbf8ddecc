"""Where the time of a step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds by name. On a GPU, events measure its own time, and are read when the next one is at rest."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._on_gpu = device.type == "cuda"
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time what happens within."""
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._open.append((name, begin, end))
            return
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def total(self) -> dict[str, float]:
        """All seconds so far, by name."""
        if self._open:
            torch.cuda.synchronize()
            self.settle()
        return dict(self.seconds)

    def settle(self) -> None:
        """Read the GPU's events; call it when the step's work is done."""
        for name, begin, end in self._open:
            self.add(name, begin.elapsed_time(end) / 1000)
        self._open.clear()
