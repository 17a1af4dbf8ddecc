"""One step: the same gradients in parts, in other precisions, with repeated captions; and steps that must be skipped."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from diptych.core.errors import ConfigError, RunError
from diptych.core.precision import Precision
from diptych.core.randomness import stable_hash
from diptych.images.tensors import normalize
from diptych.losses.contrastive import clip_loss
from diptych.models import attention
from diptych.models.config import ConvNetConfig, ResNetConfig
from diptych.models.packing import packing_spec
from diptych.training.loss import LossConfig
from diptych.training.optim.ema import WeightAverage
from diptych.training.precision import check_precision
from diptych.training.report.diagnosis import MAX_STRIKES, TrainingMonitor, diagnose, diagnostics
from tests.conftest import TINY_MODEL
from tests.training.makers import assert_close, batch_of, gradients, model_of, step_of

_DROPPING = replace(
    TINY_MODEL,
    image=replace(TINY_MODEL.image, image_px=64, patch_dropout=0.5, dropout=0.1),  # type: ignore[arg-type]
    text=replace(TINY_MODEL.own_text, dropout=0.1),
)
_CONVNET = replace(TINY_MODEL, image=ConvNetConfig(image_px=32, widths=(8, 16), layers=(1, 1)))
_RESNET = replace(TINY_MODEL, image=ResNetConfig(image_px=32, layers=(1, 1, 1, 1), width=8, heads=4))


@pytest.mark.parametrize("distinct", [12, 5, 2])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(distinct: int) -> None:
    """In float64 to twelve digits; in float32 to 16 units in the last place: CPUs without AVX-512 sum in another order."""
    batch = batch_of(TINY_MODEL, distinct=distinct)
    for dtype, tolerance in ((torch.float32, 16 * torch.finfo(torch.float32).eps), (torch.float64, 1e-12)):
        whole, loss = gradients(TINY_MODEL, batch, dtype)
        parts, loss_of_parts = gradients(TINY_MODEL, batch, dtype, micro_batch=3)
        assert loss_of_parts == pytest.approx(loss, rel=tolerance)
        assert_close(parts, whole, tolerance)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_texts_packed_by_workers_give_the_gradients_of_those_packed_in_the_tower(
    is_packed: bool, micro_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. A batch that was not packed in the workers is packed in the step."""
    batch = batch_of(TINY_MODEL, distinct=5)
    expected, loss = gradients(TINY_MODEL, batch, torch.float64)
    monkeypatch.setattr(attention, "BUCKETED_DEVICES", frozenset())
    spec = packing_spec(TINY_MODEL.own_text, torch.device("cpu"), micro_batch=micro_batch)
    assert spec is not None
    if is_packed:
        batch = replace(batch, packed=spec.pack(batch.ids, batch.lengths, num_pairs=12))
        batch = replace(batch, ids=torch.zeros_like(batch.ids))  # They are not read.
    ours, own_loss = gradients(TINY_MODEL, batch, torch.float64, micro_batch=micro_batch)
    assert own_loss == pytest.approx(loss, rel=1e-12)
    assert_close(ours, expected, 1e-12)


def test_a_text_is_read_once_however_many_rows_bear_it() -> None:
    batch = batch_of(TINY_MODEL, distinct=5)
    written_out = replace(
        batch,
        ids=batch.ids[batch.text_of_row],
        lengths=batch.lengths[batch.text_of_row],
        text_of_row=torch.arange(12),
    )
    assert_close(gradients(TINY_MODEL, batch)[0], gradients(TINY_MODEL, written_out)[0], 1e-6)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_step_on_small_pictures_is_that_of_pictures_shrunk_before(micro_batch: int | None) -> None:
    large = batch_of(_CONVNET)
    small = replace(large, pixels=functional.interpolate(large.pixels, (16, 16), mode="bicubic", antialias=True))
    models = [model_of(_CONVNET), model_of(_CONVNET)]
    results = [
        step_of(models[0], micro_batch=micro_batch)(large, lr=1e-3, seed=5, small_px=16),
        step_of(models[1], micro_batch=micro_batch)(small, lr=1e-3, seed=5),
    ]
    assert results[0].metrics == results[1].metrics
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_dropped_at_random_is_dropped_alike_in_both_passes() -> None:
    """Against the same parts with their whole graph kept; each has its own seed, of the step's and its number."""
    batch = batch_of(_DROPPING)
    ours, _ = gradients(_DROPPING, batch, micro_batch=4)
    model, outputs = model_of(_DROPPING), []
    for number in range(3):
        torch.manual_seed(stable_hash(5, number))
        rows = slice(4 * number, 4 * number + 4)
        pixels = normalize(batch.pixels[rows], _DROPPING.pixels)
        outputs.append(model(pixels, batch.ids[rows], batch.lengths[rows]))
    image_emb = torch.cat([output.image_emb for output in outputs])
    text_emb = torch.cat([output.text_emb for output in outputs])
    clip_loss(image_emb, text_emb, model.logit_scale, batch.positive_groups).backward()
    plain = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close(ours, plain, 1e-6)


def test_batch_norms_count_a_batch_once() -> None:
    batch, model = batch_of(_RESNET), model_of(_RESNET)
    step_of(model, micro_batch=4)(batch, lr=0.0, seed=0)
    counted = {int(norm.num_batches_tracked) for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)}  # type: ignore[arg-type]
    assert counted == {3}  # Once for each part.


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.06), ("fp16", 0.01)])
def test_half_precision_gives_nearly_the_same(precision: Precision, tolerance: float) -> None:
    batch = batch_of(TINY_MODEL)
    exact, loss = gradients(TINY_MODEL, batch)
    half, half_loss = gradients(TINY_MODEL, batch, precision=precision)
    assert half_loss == pytest.approx(loss, rel=tolerance)
    assert half_loss != loss
    assert_close(half, exact, tolerance)
    assert all(grad.dtype == torch.float32 for grad in half.values())


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_moves_nothing(precision: Precision, micro_batch: int | None) -> None:
    model = model_of(TINY_MODEL)
    step, batch = step_of(model, precision=precision, micro_batch=micro_batch), batch_of(TINY_MODEL)
    assert not step(batch, lr=1e-3, seed=0).skipped or precision == "fp16"
    broken = model.get_parameter("text_tower.projection.weight").data.clone()
    model.get_parameter("text_tower.projection.weight").data[0, 0] = torch.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scale = step.scaler.get_scale()
    assert step(batch, lr=1e-3, seed=1).skipped
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert step.scaler.get_scale() == (scale / 2 if precision == "fp16" else scale)
    model.get_parameter("text_tower.projection.weight").data = broken
    assert not step(batch, lr=1e-3, seed=2).skipped


def test_ten_skipped_steps_in_a_row_stop_the_run() -> None:
    model = model_of(TINY_MODEL)
    step, batch, watch = step_of(model), batch_of(TINY_MODEL), TrainingMonitor(12)
    good = step(batch, lr=0.0, seed=0)
    bad = replace(good, values=good.values.index_fill(0, torch.tensor([0]), torch.nan))
    assert bad.skipped
    for _ in range(MAX_STRIKES - 1):
        assert "its samples: key 0, key 1" in (watch.skipped(bad, batch.keys, 7, lr=0.5) or "")
    assert watch.skipped(good, batch.keys, 8, lr=0.5) is None
    for _ in range(MAX_STRIKES - 1):
        watch.skipped(bad, batch.keys, 9, lr=0.5)
    with pytest.raises(
        RunError, match=r"not finite, 10 steps in a row: the weights have diverged; the learning rate is 0.5: lower"
    ):
        watch.skipped(bad, batch.keys, 10, lr=0.5)


def test_a_loss_that_stays_at_ln_n_is_told_once() -> None:
    watch = TrainingMonitor(12)
    stuck = [watch.is_stuck(watch.ln_n * 1.005) for _ in range(1200)]
    assert [step for step, told in enumerate(stuck, 1) if told] == [500]
    assert not watch.is_stuck(1.0)
    assert [watch.is_stuck(watch.ln_n) for _ in range(500)][-1]
    of_siglip = TrainingMonitor(12, loss=LossConfig(name="sigmoid"))
    assert not any(of_siglip.is_stuck(of_siglip.ln_n) for _ in range(600))


def test_a_diagnosis_marks_what_is_wrong_with_the_run_at_hand() -> None:
    model, batch = model_of(TINY_MODEL), batch_of(TINY_MODEL, distinct=3)
    model.text_tower.requires_grad_(False)
    result = step_of(model)(batch, lr=0.0, seed=0)
    seen = diagnostics(
        model,
        batch,
        replace(result, values=result.values.index_fill(0, torch.tensor([3]), 100.0)),
        lr=1e-3,
        warmup_left=70,
    )
    text = diagnose(seen, ln_n=2.48)
    for cause in ("temperature 0.01 is at its limit", "still rises for 70", "text tower gets no gradient", "3.0 other"):
        assert f"-> {cause}" in text or cause in text
    assert text.count("->") == 4
    assert "key 0: 'caption 0'" in text
    healthy = diagnostics(model_of(TINY_MODEL), batch, result, lr=1e-3, warmup_left=0)
    assert "-> temperature" not in diagnose(healthy, ln_n=2.48)
    assert "ok learning rate 0.001: past" in diagnose(healthy, ln_n=2.48)
    assert "-> learning rate 0.5 is high; lower it (--lr)" in diagnose(replace(healthy, lr=0.5), ln_n=2.48)


def test_the_average_follows_steps_that_count() -> None:
    model = model_of(TINY_MODEL)
    average = WeightAverage(model, 0.5)
    step, batch = step_of(model, average=average), batch_of(TINY_MODEL)
    step(batch, lr=1e-2, seed=0)
    first, now = model_of(TINY_MODEL), {name: p.detach().clone() for name, p in model.named_parameters()}
    model.get_parameter("text_tower.projection.weight").data[0, 0] = torch.inf
    assert step(batch, lr=1e-2, seed=1).skipped
    shown = model_of(TINY_MODEL)
    average.copy_to(shown)
    for (name, found), start in zip(shown.named_parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(found, start.lerp(now[name], 9 / 11))  # The decay of the first update is 2 / 11.
        assert not torch.equal(found, start) or torch.equal(start, now[name])


def test_the_sigmoid_loss_learns_its_bias() -> None:
    config = replace(TINY_MODEL, init_logit_bias=-10.0)
    grads, _ = gradients(config, batch_of(config), loss=LossConfig(name="sigmoid"))
    assert float(grads["logit_bias"].abs()) > 0


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, capability = torch.device("cuda"), [(7, 5)]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[-1])
    with pytest.raises(ConfigError, match="does not support bf16; set precision to fp16 or fp32"):
        check_precision("bf16", cuda)
    assert check_precision("fp16", cuda) is None
    capability.append((6, 1))
    with pytest.raises(ConfigError, match="does not support bf16; set precision to fp32"):
        check_precision("bf16", cuda)
    with pytest.raises(ConfigError, match=r"does not support fast fp16 .* set precision to fp32"):
        check_precision("fp16", cuda)
    assert check_precision("fp32", cuda) is None
    assert "slower than fp32" in (check_precision("bf16", torch.device("cpu")) or "")
    assert check_precision("fp32", torch.device("cpu")) is None


def test_settings_of_the_loss_are_checked() -> None:
    with pytest.raises(ConfigError, match="label_smoothing is 1"):
        LossConfig(label_smoothing=1.0)
    with pytest.raises(ConfigError, match="only for the loss 'clip'"):
        LossConfig(name="sigmoid", label_smoothing=0.1)
