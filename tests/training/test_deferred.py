"""Steps as on a GPU: no value is read between two log points, and the device itself skips a step that is not finite."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.core.errors import RunError
from diptych.data.batches import loader
from diptych.data.batches.batch import Batch
from diptych.device import hardware
from diptych.device.packed_texts import PackingSpec
from diptych.models import attention
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.optim.ema import WeightAverage
from diptych.training.optim.lion import Lion
from diptych.training.precision import share_overflow
from diptych.training.report.diagnosis import MAX_STRIKES
from diptych.training.report.events import StepReport
from diptych.training.report.step_reporter import StepReporter
from diptych.training.run import train
from diptych.training.step import TrainingStep
from diptych.training.step_result import ResultCopy, StepResult
from diptych.training.validation import Validation
from tests.conftest import TINY_MODEL, TINY_RUN
from tests.training.makers import batch_of, model_of, state_of

NAMES = ("adamw", "lion", "muon")


_WAITING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.lift_fresh}
"""Operations that wait for a GPU: `item`, `bool`, and `torch.tensor` of numbers of the host, which are copied to the device."""


class _Reads(TorchDispatchMode):
    """Counts the operations that read a value of a tensor on the host, or that would copy a tensor of a device there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num = 0
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for name in ("cpu", "tolist", "numpy"):  # On a CPU, these dispatch no operation.
            self._patch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patch.undo()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += func.overloadpacket in _WAITING
        return func(*args, **(kwargs or {}))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            self.num += 1
            return method(tensor, *args, **options)

        return counted


class _Observer:
    """Records the steps, messages and validations of a run in their order."""

    def __init__(self) -> None:
        self.seen: list[StepReport | Validation | str] = []

    def on_step(self, report: StepReport) -> None:
        self.seen.append(report)

    def on_validation(self, step: int, validation: Validation) -> None:
        del step
        self.seen.append(validation)

    def on_message(self, text: str) -> None:
        self.seen.append(text)

    def close(self) -> None:
        pass

    def numbers(self) -> list[int | None]:
        """The numbers of the steps, with None for each validation."""
        return [getattr(one, "step", None) for one in self.seen if not isinstance(one, str)]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, the code treats the CPU as a device whose values cannot be read at once, with packed texts."""

    def patch() -> None:
        monkeypatch.setattr(hardware, "HOST_DEVICES", frozenset[str]())
        monkeypatch.setattr(attention, "BUCKETED_DEVICES", frozenset[str]())

    return patch


def _step(name: str, *, precision: str = "fp32") -> TrainingStep:
    model = model_of(TINY_MODEL)
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    return TrainingStep(
        model,
        build_optimizers(model, config),
        average=WeightAverage(model, decay=0.9),
        precision=precision,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_device_takes_the_steps_that_the_host_takes(name: str, as_on_a_gpu: Callable[[], None]) -> None:
    """With the same numbers, up to the rounding of operations in another order."""
    host, batch = _step(name), batch_of(TINY_MODEL)
    losses = [host(batch, lr=1e-3, seed=seed).loss for seed in range(3)]
    as_on_a_gpu()
    device = _step(name)
    assert [device(batch, lr=1e-3, seed=seed).loss for seed in range(3)] == pytest.approx(losses, rel=1e-5)
    theirs = state_of(host)
    for part, ours in state_of(device).items():
        if name == "lion" and part.endswith("key.bias"):  # Its gradient is 0 up to rounding, and Lion takes the sign.
            continue
        torch.testing.assert_close(ours, theirs[part], rtol=1e-4, atol=2e-5, msg=part)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_the_device_skips_a_step_that_is_not_finite(
    name: str, precision: str, broken: float, as_on_a_gpu: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu()
    step, batch = _step(name, precision=precision), batch_of(TINY_MODEL)
    while step(batch, lr=1e-3, seed=0).skipped:  # The loss scale of fp16 is still too large.
        assert precision == "fp16"
    before = state_of(step)
    with monkeypatch.context() as patch:
        patch.setattr("diptych.training.step.normalize", lambda pixels, _config: pixels.float() * broken)
        assert step(batch, lr=1e-3, seed=1).skipped
    after = state_of(step)
    assert before.keys() == after.keys()
    assert [part for part, value in after.items() if not torch.equal(value, before[part])] == []
    assert not step(batch, lr=1e-3, seed=2).skipped
    assert not torch.equal(state_of(step)["log_logit_scale"], before["log_logit_scale"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_step_reads_no_value_on_the_host(name: str, micro_batch: int | None, as_on_a_gpu: Callable[[], None]) -> None:
    as_on_a_gpu()
    step, batch = _step(name), batch_of(TINY_MODEL)
    step.micro_batch = micro_batch
    spec = PackingSpec(context_length=TINY_MODEL.text.context_length, micro_batch=micro_batch)
    batch = replace(batch, packed=spec.pack(batch.ids, batch.lengths, num_pairs=len(batch.pixels)))
    step(batch, lr=1e-3, seed=0)
    with _Reads() as reads:
        result = step(batch, lr=1e-3, seed=1)
        copy = ResultCopy([result])
    assert reads.num == 0
    with reads:
        assert result.values[0].item() == copy.wait()[0].loss
    assert reads.num == 3  # `item`, and `cpu` and `tolist` in `wait`: the counter counts.


def _reading_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of values read by each step of a run after its batch is loaded, reports included."""
    reads: list[int] = []
    take_step, report = TrainingStep.__call__, StepReporter.report

    def counted_step(step: TrainingStep, batch: Batch, **settings: Any) -> StepResult:
        with _Reads() as counter:
            result = take_step(step, batch, **settings)
        reads.append(counter.num)
        return result

    def counted_report(reporter: StepReporter, *arguments: Any, **settings: Any) -> None:
        with _Reads() as counter:
            report(reporter, *arguments, **settings)
        reads[-1] += counter.num

    monkeypatch.setattr(TrainingStep, "__call__", counted_step)
    monkeypatch.setattr(StepReporter, "report", counted_report)
    return reads


@pytest.mark.usefixtures("no_curves")
def test_a_run_reads_nothing_between_two_log_points_and_reports_every_step_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: Callable[[], None]
) -> None:
    on_host, on_device = _Observer(), _Observer()
    train(TINY_RUN, tmp_path / "host", observers=[on_host])
    reads = _reading_steps(monkeypatch)
    as_on_a_gpu()
    train(TINY_RUN, tmp_path / "device", observers=[on_device])
    assert len(reads) == 10
    assert [step for step, num in enumerate(reads, 1) if num] == [1, 5, 10]  # The log points.
    assert on_device.numbers() == on_host.numbers() == [None, 1, 2, 3, 4, 5, None, 6, 7, 8, 9, 10, None]
    losses = [[one.result.loss for one in side.seen if isinstance(one, StepReport)] for side in (on_host, on_device)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def _with_broken_batches(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> None:
    """The pixels of these steps (from 0) become infinite."""
    load = loader.training_batches

    def batches(*args: Any, **settings: Any) -> Iterator[Batch]:
        for number, batch in enumerate(load(*args, **settings)):
            yield replace(batch, pixels=torch.full_like(batch.pixels, 255)) if number in broken else batch

    monkeypatch.setattr("diptych.training.run.training_batches", batches)
    monkeypatch.setattr(
        "diptych.training.step.normalize", lambda pixels, _config: pixels.float() / (255 - pixels.amin().float())
    )


@pytest.mark.usefixtures("no_curves")
def test_skipped_steps_are_reported_with_their_own_samples_when_their_values_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: Callable[[], None]
) -> None:
    as_on_a_gpu()
    observer = _Observer()
    _with_broken_batches(monkeypatch, {2, 6})
    train(TINY_RUN, tmp_path / "run", observers=[observer])
    told = [text for text in observer.seen if isinstance(text, str) and text.startswith("step ")]
    assert [text.split(":", maxsplit=1)[0] for text in told] == ["step 3 skipped", "step 7 skipped"]
    steps = [one for one in observer.seen if isinstance(one, StepReport)]
    assert [one.step for one in steps if one.result.skipped] == [3, 7]
    samples = [set(text.split("its samples: ")[1].split(", ")) for text in told]
    assert len(samples[0]) == len(samples[1]) == TINY_RUN.batch_size
    assert samples[0] != samples[1]


@pytest.mark.usefixtures("no_curves")
def test_a_run_whose_steps_are_all_skipped_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: Callable[[], None]
) -> None:
    as_on_a_gpu()
    _with_broken_batches(monkeypatch, set(range(100)))
    config = replace(TINY_RUN, schedule=replace(TINY_RUN.schedule, steps=40))
    observer = _Observer()
    with pytest.raises(RunError, match=f"not finite, {MAX_STRIKES} steps in a row"):
        train(config, tmp_path / "run", observers=[observer])
    assert len([one for one in observer.seen if isinstance(one, StepReport)]) == MAX_STRIKES


def test_an_average_on_a_device_decays_as_on_the_host() -> None:
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    averages = [WeightAverage(model, decay=0.6) for model in models]
    for number in range(30):
        with torch.no_grad():
            for model in models:
                model.weight.fill_(number)
        averages[0].update(models[0])
        averages[1].update(models[1], share=torch.tensor(1.0))
        averages[1].update(models[1], share=torch.tensor(0.0))
    assert averages[1].num_updates == averages[0].num_updates == 30
    torch.testing.assert_close(averages[1].weights, averages[0].weights, rtol=1e-5, atol=1e-6)


def test_the_results_of_several_steps_are_copied_together() -> None:
    results = [StepResult.of(*torch.tensor([float(number), 0.0, 0.5, 14.0, 2.0])) for number in range(3)]
    copied = ResultCopy(results).wait()
    assert [one.metrics for one in copied] == [one.metrics for one in results]
    assert [one.loss for one in copied] == [0.0, 1.0, 2.0]


def test_one_overflow_skips_all_optimizers_of_half_precision() -> None:
    """GradScaler on its own would skip only the optimizer whose gradients overflowed."""
    scaler = torch.amp.GradScaler("cpu")
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers = [Lion([weight], lr=0.1, weight_decay=0.1) for weight in weights]
    scaler.scale(torch.ones(1))
    for weight, gradient in zip(weights, (1.0, torch.inf), strict=True):
        weight.grad = torch.full((2,), gradient)
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    share_overflow(scaler, optimizers)
    for optimizer in optimizers:
        scaler.step(optimizer)
    assert all(torch.equal(weight.data, torch.ones(2)) for weight in weights)
    assert all(
        not optimizer.state[weight]["momentum"].any() for optimizer, weight in zip(optimizers, weights, strict=True)
    )
