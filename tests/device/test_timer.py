"""Timers whose events complete long after they were recorded."""

import pytest
import torch

from diptych.device.timer import Stopwatch


class FakeEvent:
    """A CUDA event of a device that lags behind the host: reading it too early raises, as CUDA does."""

    clock = 0.0
    """Milliseconds; an event's time is that of the host when it was recorded."""
    reached = 0.0
    """How far the device is."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0

    def record(self) -> None:
        FakeEvent.clock += 10
        self.at = FakeEvent.clock

    def query(self) -> bool:
        return self.at <= FakeEvent.reached

    def elapsed_time(self, end: "FakeEvent") -> float:
        if not end.query():
            raise RuntimeError("CUDA error: device not ready")
        return end.at - self.at


@pytest.fixture(autouse=True)
def _lagging_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "clock", 0.0)
    monkeypatch.setattr(FakeEvent, "reached", 0.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: setattr(FakeEvent, "reached", FakeEvent.clock))


def test_events_are_read_when_the_device_has_reached_them() -> None:
    stopwatch = Stopwatch(torch.device("cuda"))
    for _ in range(3):
        with stopwatch.time("forward"):
            pass
    stopwatch.flush()
    assert stopwatch.seconds == {}  # The device has reached none.
    FakeEvent.reached = 45.0  # The end of the second.
    stopwatch.flush()
    assert stopwatch.seconds == {"forward": pytest.approx(0.02)}
    stopwatch.flush()
    assert stopwatch.seconds == {"forward": pytest.approx(0.02)}  # None is counted twice.
    assert stopwatch.total() == {"forward": pytest.approx(0.03)}


def test_a_cpu_is_timed_at_once() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with stopwatch.time("forward"):
        pass
    stopwatch.add("data", 2.0)
    assert stopwatch.total()["data"] == 2.0
    assert stopwatch.seconds["forward"] > 0
