"""A connection's HTTP, bounded before any request is complete: bytes of a header, and time until it is there.

uvicorn's option `h11_max_incomplete_event_size` has no effect on httptools, which it prefers: a header of 600 MiB occupied the
event loop for minutes, because httptools appends every part of it to what came before.
"""

import json
from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 32 * 1024
"""Of request line and headers."""
HEADER_S = 10.0
"""Seconds from the first byte of a request, or from the connection, until its headers are complete."""
_PER_BODY_BYTE = 8
"""Bytes that may come with each byte of a body: chunks have lengths, and line ends."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose header is too large (431) or does not come in time (408)."""

    _num_bytes = 0
    """Of the current request, less those allowed for its body."""
    _is_inside = False
    """Between the end of the headers and the end of the body."""
    _field_bytes = 0
    _timer: TimerHandle | None = None
    _is_too_large = False

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a header."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is too much."""
        if self.transport.is_closing():
            return
        if not self._is_inside and self._timer is None:
            self._arm()
        self._num_bytes += len(data)
        super().data_received(data)
        if self._num_bytes > HEADER_BYTES and not self.transport.is_closing():
            self._refuse(431)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._field_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request can be answered."""
        self._disarm()
        self._is_inside, self._num_bytes = True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._num_bytes = max(0, self._num_bytes - len(body) * (1 + _PER_BODY_BYTE))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self._disarm()
        self._is_inside, self._num_bytes = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The rest of a body that nobody reads has as long as a header."""
        super().on_response_complete()
        if self._is_inside:
            self._arm()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, or is too large."""
        self._refuse(431 if self._is_too_large else 400)

    def _count(self, part: bytes) -> None:
        self._field_bytes += len(part)
        if self._field_bytes > HEADER_BYTES:
            self._is_too_large = True
            raise ValueError("the header is too large")  # Ends parsing; `send_400_response` is called.

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(HEADER_S, self._give_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._is_answering:  # The next request's header came in part while this one is being answered.
            self._arm()
        elif not self.transport.is_closing():
            self._refuse(408)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int) -> None:
        """Answer with a problem unless an answer has begun, and close."""
        if not self._is_answering and not self._is_inside:
            self.transport.write(_problem(status))
        self._disarm()
        self.transport.close()


def _problem(status: int) -> bytes:
    phrase = HTTPStatus(status).phrase
    detail = {408: "the headers did not come in time", 431: f"the headers are larger than {HEADER_BYTES} bytes"}
    body: dict[str, Any] = {"type": "about:blank", "title": phrase, "status": status}
    content = json.dumps(body | {"detail": detail.get(status, "this is not HTTP")}).encode()
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + content
