"""Check for `/readyz` whether the index of a server can be read."""

import asyncio
from concurrent.futures import Executor

from diptych.core.errors import DiptychError
from diptych.core.terminal import visible
from diptych.index.protocol import Index
from diptych.server.problems import LOG


class IndexCheck:
    """Checks the index with a small read. Concurrent checks share one read.

    Args:
        index: the index to read.
        executor: runs the read, in a separate thread so that it does not wait for searches.
        limit_s: time limit in seconds.
    """

    def __init__(self, index: Index, *, executor: Executor, limit_s: float) -> None:
        self._index, self._executor, self._limit_s = index, executor, limit_s
        self._reading: asyncio.Future[bool] | None = None
        self._reason: str | None = None

    async def fault(self) -> str | None:
        """The fault of the index; None if it can be read. The details of each new fault are logged once."""
        details = ""
        try:
            await asyncio.wait_for(asyncio.shield(self._read()), self._limit_s)
            reason = None
        except TimeoutError:
            reason = f"the index did not answer within {self._limit_s:g} s"
        except DiptychError as error:
            reason, details = "the index cannot be read", str(error)
        if reason is not None and reason != self._reason:
            LOG.error("not ready: %s", visible(details or reason))
        self._reason = reason
        return reason

    def _read(self) -> "asyncio.Future[bool]":
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().run_in_executor(self._executor, self._index.has_vector, "")
            # Retrieve the exception, so that asyncio does not report it as never retrieved.
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
        return self._reading
