"""Batches that are copied one step ahead: the order of copies and waits, with fake CUDA streams."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import torch

from diptych.device.prefetch import prefetch

CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Numbered:
    """A batch that records when it is copied."""

    number: int
    log: list[str]

    def to(self, device: torch.device, *, non_blocking: bool) -> "Numbered":
        assert device == CUDA
        assert non_blocking
        self.log.append(f"copy {self.number}")
        return self


class FakeStream:
    """A CUDA stream that records its waits."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.num_events = 0

    def wait_stream(self, stream: "FakeStream") -> None:
        assert stream is not self
        self.log.append("wait for the step")

    def record_event(self) -> int:
        self.num_events += 1
        return self.num_events - 1

    def wait_event(self, number: int) -> None:
        self.log.append(f"wait for copy {number}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in order, with fake streams in place of CUDA's."""
    log = list[str]()
    side, main = FakeStream(log), FakeStream(log)

    def stream(given: FakeStream) -> AbstractContextManager[None]:
        assert given is side
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: main)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return log


def _loaded(num: int, log: list[str]) -> Iterator[Numbered]:
    try:
        for number in range(num):
            log.append(f"load {number}")
            yield Numbered(number, log)
    finally:
        log.append("closed")


def test_the_next_copy_starts_before_a_batch_is_used(log: list[str]) -> None:
    for batch in prefetch(_loaded(3, log), CUDA):
        log.append(f"step {batch.number}")
    first = [
        "load 0",
        "wait for the step",
        "copy 0",
        "load 1",
        "wait for the step",
        "copy 1",
        "wait for copy 0",
        "step 0",
    ]
    then = ["load 2", "wait for the step", "copy 2", "wait for copy 1", "step 1"]
    assert log == [*first, *then, "closed", "wait for copy 2", "step 2"]


@pytest.mark.parametrize("num", [0, 1])
def test_few_batches_are_all_used(log: list[str], num: int) -> None:
    assert [batch.number for batch in prefetch(_loaded(num, log), CUDA)] == list(range(num))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_closing_closes_the_source(log: list[str], device: str) -> None:
    batches = prefetch(_loaded(9, log), torch.device(device))
    next(batches)
    assert "closed" not in log
    batches.close()  # type: ignore[attr-defined]
    assert log[-1] == "closed"


def test_elsewhere_batches_are_unchanged() -> None:
    log = list[str]()
    made = [Numbered(number, log) for number in range(3)]
    got = list(prefetch(iter(made), torch.device("cpu")))
    assert all(ours is given for ours, given in zip(got, made, strict=True))
    assert log == []
