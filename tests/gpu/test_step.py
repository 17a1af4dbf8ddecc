"""A training step on a device against the CPU's, and what it does with values that are not finite."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from diptych.device.distributed import ALONE
from diptych.training.parallel.wrap import Replicas
from tests.gpu.makers import batch_with, step_on
from tests.training.makers import state_of

pytestmark = pytest.mark.gpu
BATCH = batch_with([3, 8, 5, 4, 8, 8, 3, 6, 7, 5, 4, 3])


def _losses(device: torch.device, precision: str = "fp32", num: int = 3) -> list[float]:
    step = step_on(device, precision=precision)
    return [step(BATCH, lr=1e-3, seed=number).loss for number in range(num)]


@pytest.mark.parametrize(
    ("precision", "tolerance", "steps"),
    # The first steps of fp16 are skipped until the scale of the gradients fits.
    [("fp32", 1e-4, 3), ("bf16", 3e-2, 3), ("fp16", 5e-3, 1)],
)
def test_losses_are_those_of_the_cpu(device: torch.device, precision: str, tolerance: float, steps: int) -> None:
    exact = _losses(torch.device("cpu"), num=steps)
    assert _losses(device, precision, num=steps) == pytest.approx(exact, abs=tolerance)


def test_the_weights_after_a_step_are_those_of_the_cpu(device: torch.device) -> None:
    sides = []
    for each in (torch.device("cpu"), device):
        step = step_on(each)
        step(BATCH, lr=1e-3, seed=0)
        sides.append(step.model.state_dict())
    for name, exact in sides[0].items():
        if not name.endswith("key.bias"):  # Its gradient is 0 up to rounding, and AdamW's first step takes the sign.
            torch.testing.assert_close(sides[1][name].cpu(), exact, rtol=1e-3, atol=2e-4, msg=name)


def test_parts_of_a_step_are_timed(device: torch.device) -> None:
    """On a GPU by events, which may be read only when the device has reached them."""
    step = step_on(device)
    for number in range(3):
        step(BATCH, lr=1e-3, seed=number)
    seconds = step.stopwatch.total()
    assert seconds.keys() >= {"forward", "backward", "optimizer"}
    assert all(seconds[name] > 0 for name in ("forward", "backward", "optimizer"))


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_a_step_that_is_not_finite_changes_nothing(
    device: torch.device, optimizer: str, broken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = step_on(device, optimizer=optimizer)
    step(BATCH, lr=1e-3, seed=0)
    before = state_of(step)
    with monkeypatch.context() as patch:
        patch.setattr("diptych.training.step.normalize", lambda pixels, _config: pixels.float() * broken)
        assert step(BATCH, lr=1e-3, seed=1).skipped
    after = state_of(step)
    assert before.keys() == after.keys()
    assert [name for name, value in after.items() if not torch.equal(value, before[name])] == []
    assert not step(BATCH, lr=1e-3, seed=2).skipped
    assert not torch.equal(step.model.log_logit_scale, before["log_logit_scale"])


def test_an_overflow_of_fp16_is_skipped_and_the_scale_reduced(device: torch.device) -> None:
    step = step_on(device, precision="fp16")
    step.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**30)
    before, scales, skips = step.model.log_logit_scale.clone(), list[float](), list[bool]()
    for number in range(40):
        skips.append(step(BATCH, lr=1e-3, seed=number).skipped)
        scales.append(step.scaler.get_scale())
        if not skips[-1]:
            break
        assert torch.equal(step.model.log_logit_scale, before)
    assert skips[0]
    assert not skips[-1]
    assert scales == [2.0 ** (29 - number) for number in range(len(scales) - 1)] + [scales[-2]]
    assert not torch.equal(step.model.log_logit_scale, before)


@pytest.fixture
def _process_group(device: torch.device, tmp_path: Path) -> Iterator[None]:
    """Of one process, with NCCL on a GPU."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ddp_of_one_process_changes_nothing(device: torch.device, precision: str) -> None:
    alone = _losses(device, precision)
    step = step_on(device, precision=precision)
    ids = None if device.index is None else [device.index]
    wrapped = nn.parallel.DistributedDataParallel(step.model, device_ids=ids, gradient_as_bucket_view=True)
    step.replicas = Replicas(wrapped, ALONE, no_sync=wrapped.no_sync)
    assert [step(BATCH, lr=1e-3, seed=number).loss for number in range(3)] == pytest.approx(alone, rel=1e-4)
    rows = torch.arange(6, device=device)
    gathered = [torch.empty_like(rows)]
    distributed.all_gather(gathered, rows)
    assert torch.equal(gathered[0], rows)


@pytest.mark.cuda("a CPU encodes texts of one length together, and its blocks of texts are not compiled")
@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, as its compiler loads.
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_are_compiled_once_for_all_mixtures_of_lengths(device: torch.device, precision: str) -> None:
    from diptych.training.compilation import compile_blocks

    torch.compiler.reset()
    eager, compiled = step_on(device, precision=precision), step_on(device, precision=precision)
    compile_blocks(compiled.model)
    mixtures = ([3, 8, 5, 4, 8, 8, 3, 6], [5] * 8, [16] * 8, [24, 2, 2, 3, 9, 8, 23, 4], list(range(3, 11)), [24] * 8)
    for number, lengths in enumerate(mixtures):
        batch = batch_with(lengths, seed=number)
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            loss = compiled(batch, lr=1e-4, seed=number).loss
        tolerance = 1e-3 if precision == "fp32" else 3e-2
        assert loss == pytest.approx(eager(batch, lr=1e-4, seed=number).loss, abs=tolerance)
