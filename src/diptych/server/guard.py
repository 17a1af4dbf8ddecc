"""What every request passes before a route sees it: host, key, size and time of its body; and what every answer carries."""

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.server.counts import Counts
from diptych.server.limits import Limits
from diptych.server.problems import LOG, Overloaded, Problem, problem_response

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
    """The outermost layer. Whatever goes wrong within is answered as a problem, without a word of how the server is built."""

    def __init__(
        self, app: ASGIApp, *, limits: Limits, counts: Counts, keys: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> None:
        self._app, self._limits, self._counts = app, limits, counts
        self._keys = [key.encode() for key in keys]
        self._hosts = frozenset(host.lower() for host in hosts)
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answer = time.perf_counter(), _Answer(send)
        body = _Body(self, receive)
        try:
            self._admit(scope)
            body.expect(_header(scope, b"content-length"))
            await self._app(scope, body.receive, answer.send)
        except Problem as problem:
            await self._refuse(problem, scope, receive, answer)
        except Exception:
            LOG.exception("%s %s failed", scope["method"], scope["path"])
            failed = Problem(500, "the server failed on this request; its log has the details")
            await self._refuse(failed, scope, receive, answer)
        finally:
            body.release()
            route = getattr(scope.get("route"), "path", "other")
            self._counts.requests.labels(route, str(answer.status)).inc()
            self._counts.seconds.labels(route).observe(time.perf_counter() - began)

    def _admit(self, scope: Scope) -> None:
        """Refuse a strange host, and who has no key where one is asked for."""
        if self._hosts:
            host = _header(scope, b"host").decode("latin-1")
            if (urlsplit(f"//{host}").hostname or "") not in self._hosts:
                raise Problem(421, f"this server does not answer for the host {host[:100]!r}; --allowed-host lets it")
        if self._keys and scope["path"] not in OPEN_ROUTES and not self._knows(_given_key(scope)):
            raise Problem(401, "a valid key is needed", headers={"WWW-Authenticate": 'Basic realm="Diptych"'})

    def _knows(self, given: bytes) -> bool:
        """Every key is compared, and each in the same time."""
        return any([hmac.compare_digest(given, key) for key in self._keys])  # noqa: C419  (a list does not stop early)

    async def _refuse(self, problem: Problem, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        if not answer.status:
            await problem_response(problem)(scope, receive, answer.send)

    def take(self, num: int) -> None:
        """Count bytes that are held.

        Raises:
            Overloaded: all requests together hold too many.
        """
        if self._held_bytes + num > self._limits.all_bodies_mb * 2**20:
            raise Overloaded("too many large requests are under way")
        self._held_bytes += num
        self._counts.bodies.set(self._held_bytes)

    def give_back(self, num: int) -> None:
        """They are held no longer."""
        self._held_bytes -= num
        self._counts.bodies.set(self._held_bytes)

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        return self._limits


class _Answer:
    """Adds the headers that all answers have; remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            have = {name.lower() for name, _ in message["headers"]}
            more = [
                (name.lower().encode(), value.encode())
                for name, value in {**HEADERS, "Cache-Control": "no-store"}.items()
                if name.lower().encode() not in have
            ]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)


class _Body:
    """A request's body, up to so many bytes and seconds."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self._most = guard.limits.body_mb * 2**20
        self._until = time.monotonic() + guard.limits.deadline_s
        self._num = self._held = 0
        self._is_whole = False

    def expect(self, length: bytes) -> None:
        """What the request says of itself."""
        if length.isdigit():
            self._hold(int(length))

    async def receive(self) -> Message:
        """The next part."""
        if self._is_whole:  # What comes now is that the client has gone.
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise Problem(408, "the body did not come in time", headers={"Connection": "close"}) from None
        self._num += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        self._hold(self._num)
        return message

    def release(self) -> None:
        """The request is answered."""
        self._guard.give_back(self._held)
        self._held = 0

    def _hold(self, num: int) -> None:
        if num > self._most:
            problem = f"the body is larger than {self._guard.limits.body_mb} MiB"
            raise Problem(413, problem, headers={"Connection": "close"})
        if num > self._held:
            self._guard.take(num - self._held)
            self._held = num


def _header(scope: Scope, name: bytes) -> bytes:
    found: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return found


def _given_key(scope: Scope) -> bytes:
    """From `X-API-Key`, or as a bearer's token, or as the password that a browser asks for."""
    plain = _header(scope, b"x-api-key")
    scheme, _, value = _header(scope, b"authorization").partition(b" ")
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
