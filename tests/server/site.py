"""A server in a thread of the tests' own process, and a small way to ask it."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from diptych.server.run import base_url, bind_socket, server_config


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The content, read."""
        return json.loads(self.content)


@dataclass(frozen=True)
class Site:
    """A server that runs."""

    url: str

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request; a body that is not bytes goes as JSON."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, content, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def post(self, path: str, body: Any) -> Any:
        """What a request that must succeed is answered."""
        answer = self.ask("POST", path, body)
        assert answer.status == 200, answer.content
        return answer.json


@contextmanager
def served(app: ASGIApp) -> Iterator[Site]:
    """The application on a free port, until the end of the block."""
    bound = bind_socket("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, drain_s=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    give_up_at = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    try:
        yield Site(base_url(bound))
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        bound.close()
