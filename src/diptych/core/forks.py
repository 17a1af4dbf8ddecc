"""What a forked process need not hold of its parent.

It starts with all that its parent holds, in the same pages. As soon as one of the two writes to a page, each has its own.
"""

import ctypes
import gc
import mmap
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Neighbouring pages of this process's memory."""

    address: int
    length: int
    """In bytes."""


def pages_of(tensors: Iterable[Tensor]) -> tuple[Span, ...]:
    """Those that hold nothing but one of the tensors; none where processes are not forked, or not by Linux."""
    if platform.system() != "Linux" or torch.multiprocessing.get_start_method() != "fork":
        return ()
    spans = []
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.is_contiguous():
            first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if end > first:
                spans.append(Span(first, end - first))
    return tuple(spans)


def let_go(spans: Sequence[Span]) -> None:
    """In a forked process: give up these pages of its parent's. Whoever reads them here reads zeros."""
    for span in spans:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(span.address), ctypes.c_size_t(span.length), mmap.MADV_DONTNEED)


@contextmanager
def unmoved_objects() -> Iterator[None]:
    """Within it Python's collector leaves the objects alone that are there already: it writes to each that it looks at."""
    if gc.get_freeze_count():  # Somebody else does so.
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
