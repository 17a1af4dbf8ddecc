"""Whether the index of a server answers: what `/readyz` reports of it."""

import asyncio
from concurrent.futures import Executor

from diptych.core.errors import DiptychError
from diptych.core.terminal import visible
from diptych.index.protocol import Index
from diptych.server.problems import LOG


class IndexCheck:
    """A small read of the index. Checks that come at the same time share one read.

    Args:
        index: what is read.
        executor: where it is read; a thread of its own, so that it does not wait for searches.
        limit_s: so long may it take.
    """

    def __init__(self, index: Index, *, executor: Executor, limit_s: float) -> None:
        self._index, self._executor, self._limit_s = index, executor, limit_s
        self._reading: asyncio.Future[bool] | None = None
        self._reason: str | None = None

    async def fault(self) -> str | None:
        """What is wrong with the index; None if it answers. The log has the details, once for each new fault."""
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
            self._reading.add_done_callback(_retrieve)
        return self._reading


def _retrieve(reading: "asyncio.Future[bool]") -> None:
    """Keep asyncio from reporting a failure that nobody waits for any more."""
    if not reading.cancelled():
        reading.exception()
