import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import ConfigError
from diptych.training.config import TrainConfig
from diptych.training.optim.schedule import Schedule, ScheduleConfig, Shape


def test_length_in_each_unit() -> None:
    assert Schedule(ScheduleConfig(epochs=2.5), 10).total_steps == 25
    assert Schedule(ScheduleConfig(epochs=0.001), 10).total_steps == 1
    assert Schedule(ScheduleConfig(epochs=None, steps=7), 10).total_steps == 7
    timed = Schedule(ScheduleConfig(epochs=None, minutes=2), 10)
    assert timed.total_steps is None
    assert timed.progress(10_000, 30.0) == 0.25
    assert timed.progress(0, 500.0) == 1.0
    assert Schedule(ScheduleConfig(epochs=None, steps=8), 10).progress(6, 1e9) == 0.75


def test_warm_up_then_half_a_cosine() -> None:
    schedule = Schedule(ScheduleConfig(epochs=None, steps=100, warmup_steps=4), 10)
    assert [schedule.lr_factor(step, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule.lr_factor(50, 0.5) == pytest.approx(0.5)
    assert schedule.lr_factor(99, 1.0) == pytest.approx(0.0)
    assert schedule.lr_factor(99, 1 / 3) == pytest.approx(0.75)
    constant = Schedule(ScheduleConfig(epochs=None, steps=9, warmup_steps=0, shape="constant"), 10)
    assert {constant.lr_factor(step, step / 9) for step in range(9)} == {1.0}


@pytest.mark.parametrize(
    ("shape", "heights"),
    [
        ("cosine", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", [1.0, 2 / 3, 0.5, 1 / 3, 0.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [1.0, 1.0, 1.0, 5 / 6, 0.0]),
    ],
)
def test_each_shape_and_what_is_left_at_the_end(shape: Shape, heights: list[float]) -> None:
    share: dict[str, Any] = {"decay_share": 0.4} if shape == "wsd" else {}
    points = (0.0, 1 / 3, 0.5, 2 / 3, 1.0)
    limits: list[dict[str, Any]] = [{}, {"epochs": None, "steps": 30}, {"epochs": None, "minutes": 3.0}]
    for limit in limits:
        schedule = Schedule(ScheduleConfig(warmup_steps=2, shape=shape, **share, **limit), 10)
        assert [schedule.lr_factor(9, progress) for progress in points] == pytest.approx(heights)
        assert schedule.lr_factor(0, 0.0) == 0.5
    if shape != "constant":
        left = Schedule(ScheduleConfig(warmup_steps=2, shape=shape, final_lr=0.2, **share), 10)
        assert [left.lr_factor(9, progress) for progress in points] == pytest.approx([0.2 + 0.8 * h for h in heights])
        assert left.lr_factor(0, 1.0) == pytest.approx(0.1)


def test_the_stable_part_lasts_for_four_fifths_of_steps_and_of_minutes() -> None:
    by_steps = Schedule(ScheduleConfig(epochs=None, steps=100, warmup_steps=0, shape="wsd"), 10)
    assert [by_steps.lr_factor(step, by_steps.progress(step, 0.0)) for step in (0, 79, 80, 90, 95)] == pytest.approx(
        [1.0, 1.0, 1.0, 0.5, 0.25]
    )
    by_time = Schedule(ScheduleConfig(epochs=None, minutes=10, warmup_steps=0, shape="wsd"), 10)
    assert [by_time.lr_factor(5, by_time.progress(5, 60.0 * minute)) for minute in (1, 8, 9, 11)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.0]
    )


@given(
    step=st.integers(0, 500),
    progress=st.floats(0, 1),
    warmup=st.integers(0, 300),
    shape=st.sampled_from(get_args(Shape)),
)
def test_the_factor_is_a_share(step: int, progress: float, warmup: int, shape: Shape) -> None:
    factor = Schedule(ScheduleConfig(warmup_steps=warmup, shape=shape), 10).lr_factor(step, progress)
    assert 0 <= factor <= 1 + 1e-12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 5}, "set are: epochs, steps"),
        ({"epochs": None}, "set are: none"),
        ({"epochs": 0.0}, "schedule.epochs is 0.0"),
        ({"epochs": math.nan}, "schedule.epochs is nan"),
        ({"epochs": None, "minutes": math.inf}, "schedule.minutes is inf"),
        ({"epochs": None, "steps": -1}, "schedule.steps is -1"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"shape": "wsd", "decay_share": 0.0}, "schedule.decay_share is 0.0"),
        ({"shape": "wsd", "decay_share": 1.1}, "schedule.decay_share is 1.1"),
        ({"decay_share": 0.3}, "decay_share is 0.3, but shape is 'cosine'"),
        ({"final_lr": -0.1}, "schedule.final_lr is -0.1"),
        ({"final_lr": 5e-4, "shape": "constant"}, "final_lr is 0.0005, but shape is 'constant'"),
        ({"final_lr": math.nan}, "schedule.final_lr is nan"),
        ({"small_first": ((0.5, 64), (0.5, 80))}, "shares of the run must rise"),
        ({"small_first": ((1.1, 64),)}, "shares of the run must rise"),
    ],
)
def test_impossible_schedules_are_refused(wrong: dict[str, float | str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 1}, {"micro_batch": 3, "batch_size": 64}, {"micro_batch": 0}, {"ema": 1.0}]
)
def test_impossible_runs_are_refused(wrong: dict[str, int | float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)  # type: ignore[arg-type]
