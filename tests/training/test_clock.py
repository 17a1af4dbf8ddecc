"""When the ranks of a run agree on time and stop signals. The second rank is a stand-in that answers at once."""

import pytest
from torch import Tensor

from diptych.device.distributed import ALONE, Ranks
from diptych.training.parallel.clock import RunClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the clock, to be changed by the test; other ranks have the same."""
    seconds = [0.0]
    monkeypatch.setattr("diptych.training.parallel.clock.time.monotonic", lambda: seconds[0])
    monkeypatch.setattr(Ranks, "max", lambda _ranks, tensor: tensor)
    return seconds


def _agreed_at(now: list[float], *, step_s: float, num_steps: int, ranks: Ranks, every_steps: int = 5) -> list[int]:
    """The steps after which the ranks agree, if every step takes the same time."""
    run_clock, agreed = RunClock(ranks, every_steps=every_steps), []
    for step in range(1, num_steps + 1):
        now[0] += step_s
        if run_clock.is_due(step):
            run_clock.agree(step, is_stopped=False)
            agreed.append(step)
    return agreed


def test_fast_steps_need_one_agreement_in_five(now: list[float]) -> None:
    assert _agreed_at(now, step_s=0.1, num_steps=17, ranks=Ranks(0, 2)) == [1, 2, 7, 12, 17]


def test_slow_steps_are_followed_by_an_agreement_each(now: list[float]) -> None:
    assert _agreed_at(now, step_s=6.0, num_steps=4, ranks=Ranks(0, 2)) == [1, 2, 3, 4]
    assert _agreed_at(now, step_s=2.0, num_steps=8, ranks=Ranks(0, 2)) == [1, 2, 4, 6, 8]


def test_a_single_process_agrees_after_each_step(now: list[float]) -> None:
    assert _agreed_at(now, step_s=0.1, num_steps=4, ranks=ALONE) == [1, 2, 3, 4]


def test_a_stop_signal_of_another_rank_counts(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    run_clock = RunClock(Ranks(0, 2), every_steps=5)

    def with_stopped_rank(_ranks: Ranks, tensor: Tensor) -> Tensor:
        return tensor.clamp(min=1.0)

    now[0] = 3.0
    run_clock.agree(1, is_stopped=False)
    assert (run_clock.elapsed_s, run_clock.is_stopped) == (3.0, False)
    monkeypatch.setattr(Ranks, "max", with_stopped_rank)
    run_clock.agree(2, is_stopped=False)
    assert run_clock.is_stopped
