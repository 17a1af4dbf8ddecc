"""Processes that a launcher such as torchrun started: joining the process group, and exiting when a rank fails."""

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

from diptych.core.errors import DiptychError, RunError
from diptych.core.launched import is_launched, local_rank, local_size
from diptych.device.determinism import deterministic_algorithms
from diptych.device.distributed import Ranks, all_ranks

__all__ = ["is_launched", "joined_ranks", "leave", "local_rank", "local_size"]

_PATIENCE = timedelta(minutes=30)
"""How long ranks wait for a busy rank, for example one that is validating. A rank that exits is noticed at once."""
_GRACE_S = 10.0
"""How long a rank that lost another one waits before it exits, so that the launcher can see which rank failed first."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@contextmanager
def joined_ranks(*, deterministic: bool = False) -> Iterator[Ranks]:
    """Join the default process group, and leave it when the block ends; yields all ranks.

    With `deterministic`, PyTorch uses deterministic algorithms only within the block (`deterministic_algorithms`). This must be
    decided before CUDA starts, which joining does.

    Does nothing if the process was not launched with others, or if the group exists already. When a rank fails, its error is
    raised with the number of the rank. The other ranks exit without their own errors, which would only report the lost rank.

    Raises:
        RunError: another rank exited without an error message.
        ConfigError: deterministic algorithms are not possible, because CUDA has started with other settings.
    """
    with deterministic_algorithms(deterministic), _group() as ranks:
        yield ranks


@contextmanager
def _group() -> Iterator[Ranks]:
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
    """Exit the process; a process that was launched with others skips the shutdown of PyTorch.

    A communication thread may still be running when the interpreter shuts down. The process is then aborted although its work
    is complete, which fails the whole job. Functions registered with `atexit` run, and output is flushed.

    Args:
        code: exit status.
    """
    if is_launched():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _end(error: Exception, store: Store, rank: int) -> None:
    """Raise the error if this rank is the first to fail; on the other ranks, wait for the launcher to stop the process."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # noqa: PLC0415

    is_lost = isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)
    if is_lost and not store.check([_FIRST]):
        time.sleep(_GRACE_S)
        raise RunError(
            f"rank {rank} lost another rank, which exited without an error message (killed, or out of memory?)"
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
