"""Measure throughput, latency and memory of a server under the load of many clients.

    python benchmarks/serve.py [--out FILE] [--clients 500] [--seconds 60] [--bundle DIR]

The default bundle is the tiny one of the tests, with an index of 200 synthetic pictures. Server and clients share the machine,
so clients do as little work as possible. Each client sends a text to `/v1/search`, waits for the response, and sends the next
one; after status 429 it waits for the time given in the response. The same is measured with a single client.
"""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from statistics import median, quantiles

import uvloop
from harness import arguments, machine, table, write

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image, ImageDraw
from tests.conftest import TINY_RUN

from diptych.inference.loaded import load
from diptych.search.collection import open_or_create, update
from diptych.training.run import train

WORDS = (
    "a",
    "red",
    "green",
    "blue",
    "large",
    "small",
    "circle",
    "square",
    "dog",
    "on",
    "the",
    "beach",
    "two",
    "people",
    "snow",
)
HEAD = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"


@dataclass
class Seen:
    """The responses to all clients of a measurement."""

    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def note(self, status: int, seconds: float) -> None:
        """Record one response."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.seconds.append(seconds)


def main() -> None:
    """Measure, print, and write the table."""
    given = arguments(__doc__, clients=500, seconds=60.0, bundle="")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = Path(given.bundle) if given.bundle else train(TINY_RUN, folder / "run").bundle
        assert bundle is not None
        _make_index(bundle, folder)
        command = [
            sys.executable,
            "-m",
            "diptych",
            "serve",
            str(bundle),
            "--index",
            str(folder / "index"),
            "--port",
            "0",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            port = int(process.stdout.readline().split()[1].rpartition(":")[2])
            uvloop.run(_until_ready(port))
            alone = uvloop.run(
                _measure(port, clients=1, seconds=min(15.0, given.seconds), held=[], process=process.pid)
            )
            held: list[float] = []
            many = uvloop.run(
                _measure(port, clients=given.clients, seconds=given.seconds, held=held, process=process.pid)
            )
            process.terminate()
            code = process.wait(timeout=60)
    rows = [
        _row("one client", alone, min(15.0, given.seconds)),
        _row(f"{given.clients} clients", many, given.seconds),
    ]
    ratio = (len(many.seconds) / given.seconds) / (len(alone.seconds) / min(15.0, given.seconds))
    third = max(1, len(held) // 3)
    write(
        given.out,
        "# A server under load",
        f"`python benchmarks/serve.py`, {machine('fastapi', 'uvicorn')}",
        table(["asked by", "answers/s", "p50, ms", "p99, ms", "200", "429", "others"], rows),
        f"Together {ratio:.1f} times as many as one at a time. Memory of the server, MiB: {median(held[:third]):.0f} in the "
        f"first third, {median(held[-third:]):.0f} in the last, {max(held):.0f} at the peak. It ended with exit code {code}.",
    )


def _make_index(bundle: Path, folder: Path) -> None:
    random, pictures = Random(0), folder / "pictures"
    pictures.mkdir()
    for number in range(200):
        picture = Image.new("RGB", (64, 64), random.choice(("white", "black", "grey")))
        box = sorted(random.sample(range(64), 2))
        ImageDraw.Draw(picture).ellipse((*box[:1] * 2, *box[1:] * 2), fill=random.choice(("red", "green", "blue")))
        picture.putpixel((0, 0), (number, 0, 0))
        picture.save(pictures / f"{number}.png")
    clip = load(bundle)
    with open_or_create(folder / "index", clip) as index:
        update(index, clip, [pictures])


async def _until_ready(port: int) -> None:
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return
    sys.exit("the server did not start")


async def _measure(port: int, *, clients: int, seconds: float, held: list[float], process: int) -> Seen:
    seen, until, numbers = Seen(), time.perf_counter() + seconds, count()
    work = [_client(port, seen, until, Random(next(numbers))) for _ in range(clients)]
    await asyncio.gather(_watch(process, held, until), *work)
    return seen


async def _client(port: int, seen: Seen, until: float, random: Random) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.perf_counter() < until:
            body = json.dumps({"text": " ".join(random.choices(WORDS, k=random.randint(2, 12))), "limit": 10}).encode()
            began = time.perf_counter()
            writer.write(f"{HEAD}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer)
            await reader.readexactly(int(length[1]) if length else 0)
            status = int(answer[9:12])
            seen.note(status, time.perf_counter() - began)
            if status == 429:
                wait = re.search(rb"retry-after: (\d+)", answer)
                await asyncio.sleep(min(float(wait[1]) if wait else 1.0, until - time.perf_counter()))
    finally:
        writer.close()


async def _watch(process: int, held: list[float], until: float) -> None:
    while time.perf_counter() < until:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+)", status)
        held.append(int(found[1]) / 1024 if found else 0.0)
        await asyncio.sleep(0.5)


def _row(what: str, seen: Seen, seconds: float) -> list[str]:
    cuts = quantiles(seen.seconds, n=100)
    others = sum(num for status, num in seen.statuses.items() if status not in {200, 429})
    numbers = [str(seen.statuses.get(status, 0)) for status in (200, 429)]
    rate = f"{len(seen.seconds) / seconds:,.0f}"
    return [what, rate, f"{1000 * cuts[49]:.1f}", f"{1000 * cuts[98]:.1f}", *numbers, str(others)]


if __name__ == "__main__":
    main()
