import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import ConfigError
from diptych.models.clip import CLIP
from diptych.training.config import TrainConfig
from diptych.training.optimizer import OptimizerConfig, build_optimizer
from diptych.training.schedule import Schedule, ScheduleConfig
from tests.conftest import TINY_MODEL


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


@given(step=st.integers(0, 500), progress=st.floats(0, 1), warmup=st.integers(0, 300))
def test_the_factor_is_a_share(step: int, progress: float, warmup: int) -> None:
    factor = Schedule(ScheduleConfig(warmup_steps=warmup), 10).lr_factor(step, progress)
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
    ],
)
def test_impossible_schedules_are_refused(wrong: dict[str, float | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**wrong)  # type: ignore[arg-type]


def test_decay_falls_on_matrices_alone() -> None:
    model = CLIP(TINY_MODEL)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(p)] for p in free["params"]}
    assert "log_logit_scale" in kept
    assert all(name.endswith(("bias", "class_emb", "log_logit_scale")) or "norm" in name for name in kept)
    assert all("norm" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 1}, {"validations": 0}, {"val_samples": 1}, {"checkpoint_minutes": 0.0}]
)
def test_impossible_runs_are_refused(wrong: dict[str, int | float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"eps": 0.0}, {"weight_decay": -1.0}, {"lr": math.nan}])
def test_impossible_optimizers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)  # type: ignore[arg-type]
