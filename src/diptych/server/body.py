"""Receives request bodies with limits on their size, on the time they take, and on the size of all bodies together."""

import asyncio
from contextlib import suppress

from starlette.types import Message, Receive

from diptych.server.limits import Limits
from diptych.server.metrics import Counts
from diptych.server.problems import Overloaded, Problem

_SMALL = 2**18
"""Size in bytes up to which a body may use the reserved part of the budget."""
_RESERVED_PART = 4
"""One part in this many of the budget is reserved for small bodies."""
_LINGER_S = 10.0
"""Maximum time in seconds for which the rest of a request that is too large is received."""


class BodyBudget:
    """The memory budget for the bodies of all requests that have not been answered yet."""

    def __init__(self, limits: Limits, counts: Counts) -> None:
        self.limits, self._num_bytes = limits, 0
        counts.bodies.set_function(lambda: self._num_bytes)

    def acquire(self, num: int, *, num_before: int) -> None:
        """Add bytes of a body to the total.

        Args:
            num: number of new bytes.
            num_before: number of bytes of the same body that were added before.

        Raises:
            Overloaded: the bodies of all requests together would exceed the budget.
        """
        max_bytes = self.limits.all_bodies_mb * 2**20
        if num_before + num > _SMALL:
            max_bytes -= max_bytes // _RESERVED_PART
        if self._num_bytes + num > max_bytes:
            raise Overloaded("too many large requests are under way")
        self._num_bytes += num

    def release(self, num: int) -> None:
        """Subtract bytes from the total."""
        self._num_bytes -= num


class Body:
    """Receives the body of one request. The budget counts the received bytes, not the value of `Content-Length`."""

    def __init__(self, budget: BodyBudget, receive: Receive) -> None:
        self._budget, self._receive = budget, receive
        self._num_bytes = 0
        self._is_complete = False
        self.is_waiting = False
        """Whether `receive` is waiting for the client to send more."""

    def check_length(self, length: bytes) -> None:
        """Check the value of a `Content-Length` header.

        Raises:
            Problem: the body is too large (413).
        """
        if length.isdigit() and (len(length) > 18 or int(length) > self._max_bytes):
            raise self._too_large()

    async def receive(self) -> Message:
        """Receive the next part of the body.

        Raises:
            Problem: nothing arrived within `Limits.idle_s` (408), or the body is too large (413).
            Overloaded: the bodies of all requests together exceed the budget.
        """
        if self._is_complete:  # The next message says that the client has disconnected.
            return await self._receive()
        self.is_waiting = True
        try:
            message = await asyncio.wait_for(self._receive(), self._budget.limits.idle_s)
        except TimeoutError:
            raise too_slow() from None
        self.is_waiting = False
        num = len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._num_bytes + num > self._max_bytes:
            raise self._too_large()
        self._budget.acquire(num, num_before=self._num_bytes)
        self._num_bytes += num
        return message

    async def discard_rest(self) -> None:
        """Receive and discard the rest of the body, for at most `_LINGER_S` seconds.

        Many clients read the response only after they have sent the whole request. They miss it if the connection closes
        earlier.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self._is_complete:
                    self._is_complete = not (await self._receive()).get("more_body", False)

    def release(self) -> None:
        """Return the bytes of this body to the budget. Call this after the request is answered."""
        self._budget.release(self._num_bytes)
        self._num_bytes = 0

    @property
    def _max_bytes(self) -> int:
        return self._budget.limits.body_mb * 2**20

    def _too_large(self) -> Problem:
        max_mb = self._budget.limits.body_mb
        detail = f"the body is larger than {max_mb} MiB; send fewer inputs at once, or start the server with a larger --body-mb"
        return Problem(413, detail, headers={"Connection": "close"})


def too_slow() -> Problem:
    """The response to a request whose body does not arrive in time (408)."""
    return Problem(408, "the body did not arrive in time", headers={"Connection": "close"})
