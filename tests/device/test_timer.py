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


def test_idle_time_is_between_steps_and_read_when_reached() -> None:
    stopwatch = Stopwatch(torch.device("cuda"))
    for _ in range(3):
        stopwatch.step_begins()
        with stopwatch.time("forward"):
            pass
        stopwatch.step_ends()  # Events at 10, 20, 30 (the first step begins without one), then at 40 to 70, and 80 to 110.
    assert stopwatch.idle_s == 0
    FakeEvent.reached = 45.0
    assert stopwatch.idle_s == pytest.approx(0.01)  # From 30 to 40.
    FakeEvent.reached = 200.0
    assert stopwatch.idle_s == pytest.approx(0.02)
    assert stopwatch.total() == {"forward": pytest.approx(0.03)}


def test_a_validation_between_steps_is_not_idle_time() -> None:
    stopwatch = Stopwatch(torch.device("cuda"))
    for _ in range(2):
        stopwatch.step_begins()
        stopwatch.step_ends()
        with stopwatch.time("evaluation"):
            pass
    FakeEvent.reached = 1000.0
    assert stopwatch.idle_s == 0
    assert stopwatch.total() == {"evaluation": pytest.approx(0.02)}


def test_events_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[FakeEvent]()

    def make(*, enable_timing: bool) -> FakeEvent:
        made.append(FakeEvent(enable_timing=enable_timing))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Event", make)
    stopwatch = Stopwatch(torch.device("cuda"))
    for _ in range(50):
        stopwatch.step_begins()
        with stopwatch.time("forward"):
            pass
        stopwatch.step_ends()
        FakeEvent.reached = FakeEvent.clock - 40  # The device is a step behind.
    assert len(made) < 20
    FakeEvent.reached = FakeEvent.clock
    assert stopwatch.idle_s == pytest.approx(0.49)
    assert stopwatch.total() == {"forward": pytest.approx(0.5)}


def test_a_cpu_has_no_idle_time() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        stopwatch.step_begins()
        stopwatch.step_ends()
    assert stopwatch.idle_s == 0


def test_the_wait_of_a_step_is_the_devices_and_counts_once() -> None:
    stopwatch = Stopwatch(torch.device("cuda"))
    waits = []
    for number in range(3):
        batch, waited_s = stopwatch.next_batch(iter([number]))
        assert batch == number
        waits.append(waited_s)
        stopwatch.step_ends()
        FakeEvent.reached = FakeEvent.clock
    assert waits == [0.0, 0.0, pytest.approx(0.01)]  # Known one step later.
    assert stopwatch.total() == {"data": pytest.approx(0.01)}


def test_the_wait_of_a_step_on_a_cpu_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.5])
    monkeypatch.setattr("diptych.device.timer.time.perf_counter", lambda: next(times))
    stopwatch = Stopwatch(torch.device("cpu"))
    assert stopwatch.next_batch(iter("a")) == ("a", 2.5)
    assert stopwatch.total() == {"data": 2.5}
