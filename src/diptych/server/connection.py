"""HTTP protocol with limits on the size of request headers and on the time until they are complete.

uvicorn's option `h11_max_incomplete_event_size` has no effect with httptools, the parser that uvicorn prefers. Without these
limits, a header of 600 MiB blocked the event loop for minutes, because httptools copies the whole header for each new part.
"""

import json
from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 32 * 1024
"""Maximum size of the request line and the headers together."""
HEADER_S = 10.0
"""Maximum time in seconds from the first byte of a request, or from the connection, until its headers are complete."""
_PER_BODY_BYTE = 8
"""Bytes of overhead that are allowed for each byte of a body: each chunk has a length and line ends."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection if a header is too large (431) or does not arrive in time (408)."""

    _num_bytes = 0
    """Bytes of the current request, without those allowed for its body."""
    _is_in_body = False
    """Whether the headers are complete and the body is not."""
    _field_bytes = 0
    """Size of the URL and the headers of the current request that have been parsed so far."""
    _timer: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the headers of the first request."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes. Close the connection if the headers are too large."""
        if self.transport.is_closing():
            return
        if not self._is_in_body and self._timer is None:
            self._arm()
        self._num_bytes += len(data)
        super().data_received(data)
        if self._num_bytes > HEADER_BYTES and not self.transport.is_closing():
            self._refuse(431)

    def on_message_begin(self) -> None:
        """Reset the size of the headers at the start of a request."""
        super().on_message_begin()
        self._field_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Count the bytes of a part of the URL."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header or a trailer."""
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timer; the application starts to answer."""
        self._disarm()
        self._is_in_body, self._num_bytes = True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Subtract the bytes of a part of the body, and the overhead that it may have."""
        self._num_bytes = max(0, self._num_bytes - len(body) * (1 + _PER_BODY_BYTE))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Reset the state at the end of a request."""
        self._disarm()
        self._is_in_body, self._num_bytes = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the timer if the client is still sending the body of a request that has been answered."""
        super().on_response_complete()
        if self._is_in_body:
            self._arm()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be parsed (400) or whose headers are too large (431)."""
        self._refuse(431 if self._field_bytes > HEADER_BYTES else 400)

    def _count(self, part: bytes) -> None:
        self._field_bytes += len(part)
        if self._field_bytes > HEADER_BYTES:
            raise ValueError("the header is too large")  # Ends parsing; `send_400_response` is called.

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(HEADER_S, self._on_timeout)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self._is_answering:  # A part of the next request's headers arrived during this response.
            self._arm()
        elif not self.transport.is_closing():
            self._refuse(408)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int) -> None:
        """Send a problem unless a response has begun, and close the connection."""
        if not self._is_answering and not self._is_in_body:
            self.transport.write(_problem(status))
        self._disarm()
        self.transport.close()


def _problem(status: int) -> bytes:
    phrase = HTTPStatus(status).phrase
    detail = {408: "the headers did not arrive in time", 431: f"the headers are larger than {HEADER_BYTES} bytes"}
    body: dict[str, Any] = {"type": "about:blank", "title": phrase, "status": status}
    content = json.dumps(body | {"detail": detail.get(status, "the request is not valid HTTP")}).encode()
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + content
