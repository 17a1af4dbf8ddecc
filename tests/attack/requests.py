"""Hostile requests to a real server, with plain ones between them whose answers must not change."""

import base64
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.attack.pictures import mutated, seeds
from tests.attack.target import Outcome
from tests.images.hostile import encoded

_DEADLINE_S = 10
_MAX_MIB = 3072
"""Memory of the server's own process; torch alone takes 400 MiB."""
_JSON = {"Content-Type": "application/json"}


class _Target:
    """A server that was started, and ways to ask it."""

    def __init__(self, url: str) -> None:
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and content; status 0 where the connection was closed."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def send(self, content: bytes, *, wait_s: float) -> tuple[int, bytes]:
        """Bytes as they are, and the first line that comes back."""
        try:
            with socket.create_connection((self.host, self.port), timeout=wait_s) as connection:
                connection.sendall(content)
                words = connection.recv(65536).split(b" ", 2)
        except OSError:
            return 0, b""
        return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), b""


def ask_all(num: int, bundle: Path, index: Path, *, seed: int) -> Outcome:
    """Send the requests from eight threads, every fifth a plain one."""
    rng, outcome = random.Random(seed), Outcome()
    words = ["serve", str(bundle), "--index", str(index), "--port", "0", "--deadline", str(_DEADLINE_S)]
    with subprocess.Popen([sys.executable, "-m", "diptych", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        target = _Target(process.stdout.readline().split()[1])
        try:
            _until_ready(target)
            expected = [_plain(target, kind) for kind in range(_NUM_PLAIN)]
            statuses = Counter[int]()
            attacks = [_attack(random.Random(rng.random())) for _ in range(num)]

            def one(number: int) -> None:
                if number % 5 == 0:
                    kind = number // 5 % _NUM_PLAIN
                    if _plain(target, kind) != expected[kind]:
                        outcome.failures.append(f"request {number}: a plain request was affected by the others")
                    return
                name, send = attacks[number]
                status, content = send(target)
                statuses[status] += 1
                if status >= 500 and status != 503:
                    outcome.failures.append(f"request {number} ({name}): {status} {content[:200]!r}")

            with ThreadPoolExecutor(8) as threads:
                list(threads.map(one, range(num)))
            if target.ask("GET", "/readyz")[0] != 200:
                outcome.failures.append("the server is not ready after the attack")
            memory = _peak_mib(process.pid)
            if memory > _MAX_MIB:
                outcome.failures.append(f"the server took {memory:.0f} MiB")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=90)
            except subprocess.TimeoutExpired:
                process.kill()
                outcome.failures.append("the server did not end within 90 s of SIGTERM")
    counted = ", ".join(f"{status} x {count}" for status, count in sorted(statuses.items()))
    outcome.summary = f"requests: {num:,} answered ({counted}), the server took at most {memory:.0f} MiB"
    return outcome


def _until_ready(target: _Target) -> None:
    give_up_at = time.monotonic() + 120
    while target.ask("GET", "/readyz")[0] != 200:
        if time.monotonic() > give_up_at:
            raise RuntimeError("the server does not become ready")
        time.sleep(0.1)


_NUM_PLAIN = 4


def _plain(target: _Target, kind: int) -> tuple[int, Any]:
    """A request as a client sends it; 429 and 503 are repeated as the client does."""
    picture = base64.b64encode(encoded("JPEG", 64, 48)).decode()
    path, body = (
        ("/v1/embed", {"texts": ["a small red circle"]}),
        ("/v1/embed", {"images": [picture]}),
        ("/v1/search", {"text": "a red circle", "limit": 5}),
        ("/v1/search", {"text": "a red circle", "where": "width >= 16", "limit": 5}),
    )[kind]
    for _ in range(20):
        status, content = target.ask("POST", path, json.dumps(body).encode(), _JSON)
        if status != 429:
            break
        time.sleep(0.5)
    return status, _rounded(json.loads(content)) if status == 200 else None


def _rounded(value: Any) -> Any:
    """Numbers to four digits: which others share a batch changes the order of sums."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


_Sent = tuple[str, Callable[[_Target], tuple[int, bytes]]]


def _attack(rng: random.Random) -> _Sent:
    return rng.choice(_ATTACKS)(rng)


def _post(name: str, path: str, body: Any, headers: dict[str, str] | None = None) -> _Sent:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return name, lambda target: target.ask("POST", path, content, _JSON if headers is None else headers)


def _bad_picture(rng: random.Random) -> _Sent:
    picture = base64.b64encode(mutated(rng.choice(seeds()), rng)).decode()
    bodies: dict[str, dict[str, Any]] = {
        "/v1/embed": {"images": [picture]},
        "/v1/classify": {"images": [picture], "classes": ["a", "b"]},
        "/v1/search": {"terms": [{"image": picture}]},
    }
    path = rng.choice(list(bodies))
    return _post("picture", path, bodies[path])


def _bad_filter(rng: random.Random) -> _Sent:
    depth = rng.choice((5, 50, 500))
    where = rng.choice(
        (
            "not " * depth + "width > 1",
            "(" * depth + "width > 1" + ")" * depth,
            " and ".join(["width > 1"] * depth),
            " or ".join(["caption like '%a%'"] * depth),
            "width > 1e999",
            "path like '" + "%a" * depth + "'",
            "taken > '\ud800'",
            "caption = '" + "\0" * 5 + "'",
        )
    )
    return _post("filter", "/v1/search", {"text": "a", "where": where[:2000]})


def _bad_json(rng: random.Random) -> _Sent:
    depth = rng.choice((10, 900, 100_000))
    body = rng.choice(
        (
            b"[" * depth + b"]" * depth,
            b'{"texts":' * depth + b"1" + b"}" * depth,
            b'{"texts": [' + b"[" * depth + b"]" * depth + b"]}",
            b'{"texts": ["' + b"a" * 5000 + b'"]}',
            b'{"texts": ["\\ud800"]}',
            b'{"texts": [' + b"9" * 5000 + b"]}",
            b'{"texts": ["a"], "texts": 5}',
            b"\xff\xfe{",
            b"",
            b"null",
        )
    )
    return _post("JSON", rng.choice(("/v1/embed", "/v1/search", "/v1/embeddings", "/v1/similarity")), body)


def _bad_text(rng: random.Random) -> _Sent:
    text = "".join(
        chr(rng.choice((0, 27, 0x202E, 0x1F600, rng.randrange(32, 0xD7FF)))) for _ in range(rng.randrange(1, 3000))
    )
    return _post("text", "/v1/embed", {"texts": [text]})


def _bad_header(rng: random.Random) -> _Sent:
    lines = rng.choice(
        (
            b"Host: [\r\n",
            b"Host: [::1\r\n",
            b"Host: evil.example\r\n",
            b"Host: 127.0.0.1\r\nX: " + b"a" * 200_000 + b"\r\n",
            b"Host: 127.0.0.1\r\n" + b"X: a\r\n" * 5000,
            b"Host: 127.0.0.1\r\nOrigin: http://evil.example\r\n",
            b"Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\n",
            b"Host: 127.0.0.1\r\nContent-Length: -5\r\n",
            b"Host: 127.0.0.1\r\nContent-Length: 99999999999\r\n",
            b"Host: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n",
            b"Host: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n",
        )
    )
    method = rng.choice((b"GET", b"POST", b"PUT", b"FOO"))
    return "header", lambda target: target.send(method + b" /v1/embed HTTP/1.1\r\n" + lines + b"\r\n", wait_s=15)


def _bad_path(rng: random.Random) -> _Sent:
    path = rng.choice(
        (
            "/v1/images/../../etc/passwd",
            "/v1/images/" + "a" * 5000,
            "/page/../../../../etc/passwd",
            "/page/%2e%2e/%2e%2e/etc/passwd",
            "/v1/images/" + "0" * 32 + "/heat?text=" + "%F0%9F%98%80" * 300,
            "/v1/images/" + "0" * 32 + "/thumb?px=1000000",
            "//evil.example/",
            "/v1/info/",
            "/%00",
        )
    )
    return "path", lambda target: target.ask(rng.choice(("GET", "HEAD", "DELETE")), path)


def _silent(rng: random.Random) -> _Sent:
    """A large body that is announced and never sent."""
    size = rng.choice((1000, 32 * 2**20))
    head = f"POST /v1/embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    return "silent", lambda target: target.send(head.encode(), wait_s=2)


_ATTACKS = (
    _bad_picture,
    _bad_picture,
    _bad_picture,
    _bad_filter,
    _bad_json,
    _bad_text,
    _bad_header,
    _bad_path,
    _silent,
)


def _peak_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
