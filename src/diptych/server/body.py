"""The body of a request as it arrives: bounded in size, in time, and together with all other bodies."""

import asyncio
from contextlib import suppress

from starlette.types import Message, Receive

from diptych.server.limits import Limits
from diptych.server.metrics import Counts
from diptych.server.problems import Overloaded, Problem

_SMALL = 2**18
"""Bytes up to which a body may use the share of the budget that larger ones leave free."""
_FREE = 4
"""Larger bodies leave one part in so many of the budget free."""
_LINGER_S = 10.0
"""Seconds for which the rest of a too large request is received."""


class BodyBudget:
    """Bytes of all bodies that have arrived and are not answered yet."""

    def __init__(self, limits: Limits, counts: Counts) -> None:
        self.limits, self._counts = limits, counts
        self._held = 0

    def take(self, num: int, *, before: int) -> None:
        """Count bytes of a body that holds some already.

        Raises:
            Overloaded: all requests together hold too many.
        """
        most = self.limits.all_bodies_mb * 2**20
        if before + num > _SMALL:
            most -= most // _FREE
        if self._held + num > most:
            raise Overloaded("too many large requests are under way")
        self._change(num)

    def give_back(self, num: int) -> None:
        """They are held no longer."""
        self._change(-num)

    def _change(self, num: int) -> None:
        self._held += num
        self._counts.bodies.set(self._held)


class Body:
    """Receives one request's body. Only bytes that have arrived count, not those that a header announces."""

    def __init__(self, budget: BodyBudget, receive: Receive) -> None:
        self._budget, self._receive = budget, receive
        self._held = 0
        self._is_whole = False
        self.is_awaited = False
        """Whether the request waits for its client."""

    def expect(self, length: bytes) -> None:
        """Refuse a body that is announced as too large.

        Raises:
            Problem: it is (413).
        """
        if length.isdigit() and (len(length) > 18 or int(length) > self._most):
            raise self._too_large()

    async def receive(self) -> Message:
        """The next part.

        Raises:
            Problem: nothing came for too long (408), or the body is too large (413).
        """
        if self._is_whole:  # The next message is that the client has gone.
            return await self._receive()
        self.is_awaited = True
        try:
            message = await asyncio.wait_for(self._receive(), self._budget.limits.idle_s)
        except TimeoutError:
            raise too_slow() from None
        self.is_awaited = False
        num = len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._held + num > self._most:
            raise self._too_large()
        self._budget.take(num, before=self._held)
        self._held += num
        return message

    async def drop_rest(self) -> None:
        """Receive and discard the rest of the body, for at most `_LINGER_S`.

        Many clients read the response only after they have sent the whole request. If the connection closes before, they miss
        the response.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self._is_whole:
                    self._is_whole = not (await self._receive()).get("more_body", False)

    def release(self) -> None:
        """The request is answered."""
        self._budget.give_back(self._held)
        self._held = 0

    @property
    def _most(self) -> int:
        return self._budget.limits.body_mb * 2**20

    def _too_large(self) -> Problem:
        most = self._budget.limits.body_mb
        detail = f"the body is larger than {most} MiB; send fewer inputs at once, or start the server with a larger --body-mb"
        return Problem(413, detail, headers={"Connection": "close"})


def too_slow() -> Problem:
    """The answer to a request whose body does not arrive in time."""
    return Problem(408, "the body did not come in time", headers={"Connection": "close"})
