"""Shared code of the benchmarks: alternating rounds, medians, paired ratios, the machine's peak performance, and tables."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each side in each round."""

    of: Mapping[str, Sequence[float]]

    def median(self, side: str) -> float:
        """Return the median seconds of a side."""
        return median(self.of[side])

    def ratio(self, peer: str, own: str) -> float:
        """Return the median over rounds of the ratio of the peer's time to ours; above 1, Diptych is faster."""
        return median(theirs / ours for theirs, ours in zip(self.of[peer], self.of[own], strict=True))


def in_turn(sides: Mapping[str, Callable[[], object]], *, rounds: int) -> Times:
    """Time each side once per round, after an untimed warm-up round. Every other round runs in reverse order."""
    for action in sides.values():
        action()
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for side in turns(sides, rounds=rounds):
        began = time.perf_counter()
        sides[side]()
        taken[side].append(time.perf_counter() - began)
    return Times(taken)


def turns(sides: Iterable[str], *, rounds: int) -> Iterator[str]:
    """Yield each side once per round; every other round is in reverse order."""
    for number in range(rounds):
        yield from list(sides)[:: -1 if number % 2 else 1]


@contextmanager
def apart(sides: Mapping[str, Callable[[], Callable[[], object]]]) -> Iterator[Mapping[str, Callable[[], object]]]:
    """Create each side in its own process; yields functions that run the side's action there and wait for it."""
    context = get_context("spawn")
    with ExitStack() as stack:
        actions = {}
        for name, make in sides.items():
            here, there = context.Pipe()
            process = context.Process(target=_act, args=(make, there), daemon=True)
            process.start()
            there.close()
            stack.callback(process.join)
            stack.callback(here.close)
            actions[name] = partial(_request, here)
        yield actions


def _act(make: Callable[[], Callable[[], object]], pipe: Connection) -> None:
    action = make()
    with suppress(EOFError):
        while True:
            pipe.recv()
            action()
            pipe.send(None)


def _request(pipe: Connection) -> None:
    pipe.send(None)
    pipe.recv()


def product_ceiling(size: int = 2048, dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Return the peak FLOP/s of a large matrix product, the best of 8; on a CPU, the faster of `@` and oneDNN."""
    left, right = torch.randn(2, size, size, device=device).to(dtype).unbind()
    sides: dict[str, Callable[[], object]] = {"product": lambda: _wait(left @ right)}
    if device == "cpu" and dtype == torch.float32:
        sides["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    with torch.no_grad():
        taken = in_turn(sides, rounds=8).of
    return 2 * size**3 / min(map(min, taken.values()))


def copy_ceiling(num_bytes: int = 2**29) -> float:
    """Return the peak memory bandwidth of a large copy in bytes per second, read plus written, the best of 8."""
    source, target = torch.ones(2, num_bytes, dtype=torch.uint8).unbind()
    taken = in_turn({"copy": lambda: target.copy_(source)}, rounds=8).of
    return 2 * num_bytes / min(taken["copy"])


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def machine(*packages: str) -> str:
    """Return the date, the machine and the versions of packages, for the header of a table."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", *packages))
    return (
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores,\n"
        f"Python {platform.python_version()}, {versions}."
    )


def must_agree(what: str, difference: float, *, at_most: float) -> None:
    """Exit with an error message if the results of the sides differ by more than `at_most`."""
    if not difference <= at_most:
        sys.exit(f"{what}: the sides differ by {difference:.1e}, more than {at_most:.0e}; nothing is timed")


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def write(out: Path | None, *parts: str) -> None:
    """Print the parts, and write them to the file `out` unless it is None."""
    text = "\n\n".join(parts) + "\n"
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


def arguments(doc: str | None, **more: Any) -> argparse.Namespace:
    """Parse the command line: `--out`, and the options in `more`, whose values are the defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table there, too")
    for name, default in more.items():
        kind: dict[str, Any] = (
            {"action": "store_true"} if default is False else {"type": type(default), "default": default}
        )
        parser.add_argument(f"--{name.replace('_', '-')}", **kind)
    return parser.parse_args()
