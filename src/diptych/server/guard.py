"""What every request passes before a route sees it: host, site, key, limits of size and time. Headers that all answers have."""

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.core.terminal import visible
from diptych.server.body import Body, BodyBudget, too_slow
from diptych.server.keys import check_key
from diptych.server.limits import Limits
from diptych.server.metrics import Counts
from diptych.server.origin import check_host, check_site, header
from diptych.server.problems import LOG, Problem, problem_response, too_late

OPEN_ROUTES = frozenset({"/healthz", "/readyz"})
"""Asked by what watches over the server; they need no key."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """The outermost layer. Whatever goes wrong within is answered as a problem, without a word of how the server is built.

    A request that is not answered within the deadline gets 503, whatever it waits for. An answer that has begun has as
    long again to be sent.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, counts: Counts, keys: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> None:
        self._app, self._limits, self._counts = app, limits, counts
        self._keys = [check_key(key, "keys").encode() for key in keys]
        self._hosts = frozenset(host.lower() for host in hosts)
        self._budget = BodyBudget(limits, counts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, body = time.perf_counter(), Body(self._budget, receive)
        is_head = scope["method"] == "HEAD"
        if is_head:  # Handled as GET, without the content.
            scope = {**scope, "method": "GET"}
        answer = _Answer(send, body, has_content=not is_head)
        try:
            await self._in_time(scope, body, answer)
        except Problem as problem:
            await self._refuse(problem, scope, receive, answer)
        except Exception:
            LOG.exception("%s %s failed", visible(scope["method"]), visible(scope["path"]))
            failed = Problem(500, "the server failed on this request; its log has the details")
            await self._refuse(failed, scope, receive, answer)
        finally:
            body.release()
            route = getattr(scope.get("route"), "path", "other")
            self._counts.requests.labels(route, str(answer.status)).inc()
            self._counts.seconds.labels(route).observe(time.perf_counter() - began)

    async def _in_time(self, scope: Scope, body: Body, answer: "_Answer") -> None:
        """The application's answer.

        Raises:
            Problem: it did not come within the deadline (503), because the body did not (408).
        """
        deadline_s, clock = self._limits.deadline_s, asyncio.get_running_loop().time
        until = asyncio.timeout(deadline_s)

        def extend() -> None:
            if not until.expired():
                until.reschedule(clock() + deadline_s)

        try:
            async with until:
                self._admit(scope)
                body.expect(header(scope, b"content-length"))
                answer.on_start = extend
                await self._app(scope, body.receive, answer.send)
        except TimeoutError:
            if not until.expired():
                raise
            raise (too_slow() if body.is_awaited else too_late()) from None
        finally:
            answer.on_start = _nothing

    def _admit(self, scope: Scope) -> None:
        """Refuse a strange host, another site's page, and who has no key where one is needed."""
        check_host(scope, self._hosts)
        check_site(scope, self._hosts)
        if self._keys and scope["path"] not in OPEN_ROUTES and not self._knows(_given_key(scope)):
            detail = "a valid key is needed: send it as X-API-Key, or as a bearer token"
            raise Problem(401, detail, headers={"WWW-Authenticate": 'Basic realm="Diptych"'})

    def _knows(self, given: bytes) -> bool:
        """Every key is compared, and each in the same time."""
        return any([hmac.compare_digest(given, key) for key in self._keys])  # noqa: C419  (a list does not stop early)

    async def _refuse(self, problem: Problem, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        if not answer.status:
            await problem_response(problem, scope["path"])(scope, receive, answer.send)


def _nothing() -> None:
    pass


class _Answer:
    """Adds the headers of all responses and stores the status. A response to HEAD has no content.

    After a request that is too large (413), the connection closes when the whole request has arrived.
    """

    def __init__(self, send: Send, body: Body, *, has_content: bool) -> None:
        self._send, self._body, self._has_content, self.status = send, body, has_content, 0
        self.on_start: Callable[[], object] = _nothing

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.on_start()
            have = {name.lower() for name, _ in message["headers"]}
            more = [
                (name.lower().encode(), value.encode())
                for name, value in {**HEADERS, "Cache-Control": "no-store"}.items()
                if name.lower().encode() not in have
            ]
            message = {**message, "headers": [*message["headers"], *more]}
        elif not self._has_content:
            message = {**message, "body": b""}
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            await self._send({**message, "more_body": True})
            self._body.release()
            await self._body.drop_rest()
            message = {"type": "http.response.body"}
        await self._send(message)


def _given_key(scope: Scope) -> bytes:
    """From `X-API-Key`, or as a bearer's token, or as the password that a browser asks for."""
    plain = header(scope, b"x-api-key")
    scheme, _, value = header(scope, b"authorization").partition(b" ")
    match scheme.lower():
        case b"bearer":
            return value.strip()
        case b"basic":
            try:
                return base64.b64decode(value, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return b""
        case _:
            return plain
