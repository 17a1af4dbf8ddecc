"""Middleware that checks host, site, key, size and time of every request, and adds security headers to every response."""

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.core.terminal import visible
from diptych.server.body import Body, BodyBudget, too_slow
from diptych.server.keys import check_key
from diptych.server.limits import Limits
from diptych.server.metrics import Counts
from diptych.server.origin import check_host, check_site, header
from diptych.server.problems import LOG, Problem, problem_response, too_late

OPEN_ROUTES = frozenset({"/healthz", "/readyz"})
"""Routes for health checks, which need no key."""

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
    """ASGI middleware around the whole application.

    Every error becomes a JSON problem without details of the implementation. A request that is not answered within
    `Limits.deadline_s` gets status 503. Once a response has begun, it has the same time again to be sent.

    Args:
        app: the application.
        limits: limits of size and time.
        counts: the metrics to update.
        keys: valid API keys; empty to allow requests without a key.
        hosts: names of this server that requests may use; empty to allow any name.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, counts: Counts, keys: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> None:
        self._app, self._limits, self._counts = app, limits, counts
        self._keys = [check_key(key, "keys").encode() for key in keys]
        self._hosts = frozenset(host.lower() for host in hosts)
        self._budget = BodyBudget(limits, counts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, body = time.perf_counter(), Body(self._budget, receive)
        is_head = scope["method"] == "HEAD"
        if is_head:  # HEAD is handled as GET, and the content is dropped.
            scope = {**scope, "method": "GET"}
        response = _Response(send, body, has_content=not is_head)
        try:
            await self._in_time(scope, body, response)
        except Problem as problem:
            await self._refuse(problem, scope, receive, response)
        except Exception:
            LOG.exception("%s %s failed", visible(scope["method"]), visible(scope["path"]))
            failed = Problem(500, "the server failed on this request; its log has the details")
            await self._refuse(failed, scope, receive, response)
        finally:
            body.release()
            route = getattr(scope.get("route"), "path", "other")
            self._counts.requests.labels(route, str(response.status)).inc()
            self._counts.seconds.labels(route).observe(time.perf_counter() - began)

    async def _in_time(self, scope: Scope, body: Body, response: "_Response") -> None:
        """Run the application within the deadline.

        Raises:
            Problem: the client did not send its body within the deadline (408), or the response took too long (503).
        """
        deadline_s, clock = self._limits.deadline_s, asyncio.get_running_loop().time
        until = asyncio.timeout(deadline_s)

        def extend() -> None:
            if not until.expired():
                until.reschedule(clock() + deadline_s)

        try:
            async with until:
                self._admit(scope)
                body.check_length(header(scope, b"content-length"))
                response.on_start = extend
                await self._app(scope, body.receive, response.send)
        except TimeoutError:
            if not until.expired():
                raise
            raise (too_slow() if body.is_waiting else too_late()) from None
        finally:
            response.on_start = lambda: None

    def _admit(self, scope: Scope) -> None:
        """Check host, site and key of a request.

        Raises:
            Problem: one of them is not allowed.
        """
        check_host(scope, self._hosts)
        check_site(scope, self._hosts)
        if self._keys and scope["path"] not in OPEN_ROUTES and not self._is_valid(_api_key(scope)):
            detail = "a valid key is needed: send it as X-API-Key, or as a bearer token"
            raise Problem(401, detail, headers={"WWW-Authenticate": 'Basic realm="Diptych"'})

    def _is_valid(self, api_key: bytes) -> bool:
        """Whether a key is valid. All keys are compared in constant time, so that timing reveals nothing about them."""
        return any([hmac.compare_digest(api_key, key) for key in self._keys])  # noqa: C419  (a list does not stop early)

    async def _refuse(self, problem: Problem, scope: Scope, receive: Receive, response: "_Response") -> None:
        if not response.status:
            await problem_response(problem, scope["path"])(scope, receive, response.send)


class _Response:
    """Adds the headers of all responses and stores the status. A response to HEAD has no content.

    After a request that is too large (413), the connection stays open until the rest of the request has arrived.
    """

    def __init__(self, send: Send, body: Body, *, has_content: bool) -> None:
        self._send, self._body, self._has_content, self.status = send, body, has_content, 0
        self.on_start: Callable[[], object] = lambda: None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.on_start()
            headers = MutableHeaders(raw=[*message["headers"]])
            for name, value in {**HEADERS, "Cache-Control": "no-store"}.items():
                headers.setdefault(name, value)
            message = {**message, "headers": headers.raw}
        elif not self._has_content:
            message = {**message, "body": b""}
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            await self._send({**message, "more_body": True})
            self._body.release()
            await self._body.discard_rest()
            message = {"type": "http.response.body"}
        await self._send(message)


def _api_key(scope: Scope) -> bytes:
    """The API key of a request: a bearer token, the password of basic authentication, or the value of `X-API-Key`."""
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
