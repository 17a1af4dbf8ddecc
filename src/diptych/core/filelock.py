"""One process at a time: a lock on a file, which the system lets go of when its holder dies."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.core.errors import BusyError

_LOOK_AGAIN_S = 0.1


@contextmanager
def file_lock(path: Path, *, wait_s: float) -> Iterator[None]:
    """Hold the lock.

    Raises:
        BusyError: another process holds it, and still does after so many seconds; its name is told.
        OSError: there can be no such file.
    """
    give_up_at = time.monotonic() + wait_s
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    holder = path.read_text(encoding="utf-8").strip() or "another process"
                    said = f"{path.parent}: is being written by {holder}; try again when it is done"
                    raise BusyError(said) from None
                time.sleep(_LOOK_AGAIN_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
