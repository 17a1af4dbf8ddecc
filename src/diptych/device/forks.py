"""Keep the memory of forked processes shared, and make torch usable in them.

A forked process shares its parent's memory pages. When either process writes to a page, the page is copied. Of the parent's
threads, only the one that forked exists in the forked process.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diptych.core.errors import DiptychError

_computed = set[tuple[int, str]]()
"""(process id, device type) of each computation with torch in this process and in the processes from which it was forked."""


@contextmanager
def unmoved_objects() -> Iterator[None]:
    """Exclude all existing objects from garbage collection while the block runs.

    The garbage collector writes to every object that it visits, which would copy the shared memory pages of forked processes.
    """
    if gc.get_freeze_count():  # The caller has already frozen objects, and unfreezes them.
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def before_computing(device: torch.device) -> None:
    """Prepare torch for a computation in a process that may have been forked after an earlier computation.

    Call this before each computation. Otherwise torch in the forked process waits forever for OpenMP threads that exist only in
    the parent. In a forked process it therefore sets the number of threads to one.

    Raises:
        DiptychError: the process was forked and the device is a GPU.
    """
    here = os.getpid(), device.type
    if here in _computed:
        return
    inherited = {kind for process, kind in tuple(_computed) if process != here[0]}
    if device.type in inherited - {"cpu"}:
        raise DiptychError(
            f"a forked process cannot use the {device.type} device of its parent; start it with multiprocessing's "
            "'spawn' method and load the model there"
        )
    if inherited:
        torch.set_num_threads(1)
    _computed.add(here)
