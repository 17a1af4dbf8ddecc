"""Copy batches to a GPU while it computes on earlier ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch


@runtime_checkable
class Movable(Protocol):
    """An object whose tensors can be copied to a device, such as a `Batch`."""

    def to(self: "Moved", device: torch.device, *, non_blocking: bool) -> "Moved":
        """A copy on the device. With `non_blocking`, copies from page-locked memory may still be running."""


Moved = TypeVar("Moved", bound=Movable)


def prefetch(batches: Iterator[Moved], device: torch.device) -> Iterator[Moved]:
    """Yield the batches on a CUDA device, each copied during the previous step; for other devices yield them unchanged.

    The copies overlap with computation only if the batches are in page-locked memory. Call `next` with the same current CUDA
    stream each time, and use a batch only on that stream. When the returned iterator is closed, it closes `batches`.

    Args:
        batches: the batches, in host memory.
        device: the device that computes on them.
    """
    try:
        if device.type == "cuda":
            yield from _one_ahead(batches, _SideStream(device))
        else:
            yield from batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


@dataclass(frozen=True)
class _Copy(Generic[Moved]):
    """A batch on the device, and the event after which its tensors have their values."""

    batch: Moved
    done: Any


class _SideStream:
    """Copies batches on a separate CUDA stream.

    The memory of a copy belongs to this stream, so the allocator may reuse it for a later copy as soon as the caller drops its
    references, even if the device is still computing with it. Each copy therefore waits for everything that the caller has
    queued so far, which includes all uses of batches that it has dropped. When the caller requests batch t, it has queued step
    t - 1; the copy of batch t + 1 then runs during step t. `Tensor.record_stream` is not needed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: Moved) -> _Copy[Moved]:
        """Start the copy of a batch."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
            return _Copy(copied, self._stream.record_event())

    def finish(self, copy: _Copy[Moved]) -> Moved:
        """The copied batch; what is computed from now on waits for the copy."""
        torch.cuda.current_stream(self._device).wait_event(copy.done)
        return copy.batch


def _one_ahead(batches: Iterator[Moved], copies: _SideStream) -> Iterator[Moved]:
    """Yield each batch after the copy of the next one has been started."""
    waiting: _Copy[Moved] | None = None
    for batch in batches:
        following = copies.start(batch)
        if waiting is not None:
            yield copies.finish(waiting)
        waiting = following
    if waiting is not None:
        yield copies.finish(waiting)
