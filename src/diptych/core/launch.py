"""Processes that a launcher such as torchrun starts to train together: how they meet, and how they end when one fails."""

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
from torch import distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from diptych.core.distributed import Ranks, all_ranks
from diptych.core.errors import DiptychError, RunError

_PATIENCE = timedelta(minutes=30)
"""How long ranks wait for one that is busy, with validation maybe. One that ends is noticed at once."""
_GRACE_S = 10.0
"""How long a rank that lost another leaves the launcher to see which one was the first."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


def is_launched() -> bool:
    """Whether a launcher started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Number of this process among those that were launched on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """How many were launched on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Meet the other ranks, and part with them at the end. Where there are none, or they have met already, nothing is done.

    When a rank fails, its error is told, and the others end without adding theirs, which only say that they lost it.

    Raises:
        RunError: another rank was lost, and did not say why.
    """
    if not is_launched() or distributed.is_initialized():
        yield all_ranks()
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank())
    store, rank, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield all_ranks()
    except Exception as error:
        _end(error, store, rank)
    else:
        distributed.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End a process; one that was launched with others does so without taking PyTorch down.

    Now and then a thread of the exchange is still there when the interpreter goes, and the process is aborted after all of its
    work is done, which fails the job of all ranks. What Python registered for its end is run.
    """
    if is_launched():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _end(error: Exception, store: Store, rank: int) -> None:
    """Raise the error if this rank is the first to fail; the others wait for the launcher to end them."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # noqa: PLC0415

    is_lost = isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)
    if is_lost and not store.check([_FIRST]):
        time.sleep(_GRACE_S)
        raise RunError(
            f"rank {rank} lost another rank, which ended without a word (killed, or out of memory?)"
        ) from None
    first = int(store.compare_set(_FIRST, "", str(rank)))
    if first != rank:
        time.sleep(_GRACE_S)
        raise SystemExit(1)
    get_error_handler().record_exception(error)  # For the launcher's summary.
    if isinstance(error, DiptychError):
        raise type(error)(f"rank {rank}: {error}") from None
    raise error


_FIRST = "first rank to fail"
