"""A student that learns from a teacher, which reads the batch in its own way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych.bundle.folder import load_bundle
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import override
from diptych.data.batches.loader import training_batches
from diptych.device.distributed import ALONE
from diptych.images.tensors import normalize
from diptych.inference.embedder import Embedder
from diptych.losses.contrastive import clip_loss
from diptych.losses.distillation import distillation_loss
from diptych.training.config import TrainConfig
from diptych.training.distillation import DistillConfig
from diptych.training.run import train
from diptych.training.setup import Assembly, assemble, open_data, training_examples
from diptych.training.starting_point import starting_point
from tests.conftest import TINY_RUN

STUDENT = override(
    TINY_RUN,
    {
        "model.image.image_px": "64",
        "model.text.tokenizer": "character",
        "model.text.context_length": "64",
        "data.positives": "pair",
    },
)


def _student(teacher: Path, **settings: object) -> tuple[Assembly, TrainConfig]:
    config = replace(STUDENT, distill=DistillConfig(teacher=str(teacher), weight=2.0), **settings)  # type: ignore[arg-type]
    source, _ = open_data(config)
    start = starting_point(config, None, source, ALONE)
    config = replace(config, model=start.model.config)
    return assemble(config, start.model, start.tokenizer, ALONE), config


def test_the_teacher_reads_in_its_own_way(tiny_bundle: Path) -> None:
    assembly, config = _student(
        tiny_bundle, augment=replace(STUDENT.augment, flip=0.0, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    )
    source, _ = open_data(config)
    batch = next(
        training_batches(
            training_examples(source, config, assembly.step.teacher), assembly.embedder.bundle.tokenizer, batch_size=16
        )
    )
    assert batch.for_teacher is not None
    assert batch.pixels.shape[-1] == 64
    assert batch.for_teacher.pixels.shape[-1] == 32
    assert assembly.step.teacher is not None
    images, texts, _ = assembly.step.teacher.encode(batch.for_teacher, at_once=5)
    embedder = Embedder(load_bundle(tiny_bundle))
    pictures = [source[number].image for number in range(len(source)) if source.key(number) in batch.keys]
    order = [batch.keys.index(source.key(number)) for number in range(len(source)) if source.key(number) in batch.keys]
    # Pillow resizes for evaluation, PyTorch for training: within a few grey values.
    torch.testing.assert_close(images[order], torch.from_numpy(embedder.encode_images(pictures)), atol=0.02, rtol=0)
    expected = torch.from_numpy(embedder.encode_texts(batch.captions))
    torch.testing.assert_close(texts[batch.text_of_row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_its_loss_is_added(tiny_bundle: Path, micro_batch: int | None) -> None:
    assembly, config = _student(tiny_bundle, micro_batch=micro_batch)
    source, _ = open_data(config)
    examples = training_examples(source, config, assembly.step.teacher)
    batch = next(training_batches(examples, assembly.embedder.bundle.tokenizer, batch_size=16))
    assembly.step.max_grad_norm = None
    result = assembly.step(batch, lr=0.0, seed=0)
    ours = {name: p.grad.clone() for name, p in assembly.model.named_parameters() if p.grad is not None}
    assembly.model.zero_grad()
    out = assembly.model(normalize(batch.pixels, config.model.pixels), batch.ids, batch.lengths)
    text_emb = out.text_emb[batch.text_of_row]
    assert assembly.step.teacher is not None
    assert batch.for_teacher is not None
    images, texts, scale = assembly.step.teacher.encode(batch.for_teacher, at_once=16)
    pairs = clip_loss(out.image_emb, text_emb, out.logit_scale)
    taught = distillation_loss(out.image_emb, text_emb, out.logit_scale, images, texts[batch.text_of_row], scale)
    (pairs + 2 * taught).backward()
    assert result.loss == pytest.approx(pairs.item(), abs=1e-5)
    assert result.teacher_loss == pytest.approx(taught.item(), abs=1e-5)
    exact = {
        name: parameter.grad for name, parameter in assembly.model.named_parameters() if parameter.grad is not None
    }
    assert ours.keys() == exact.keys()
    whole, expected = (torch.cat([grads[name].flatten() for name in exact]) for grads in (ours, exact))
    assert float((whole - expected).norm()) <= 1e-5 * float(expected.norm())


def test_a_run_learns_from_it(tiny_bundle: Path, tmp_path: Path) -> None:
    config = override(STUDENT, {"distill.teacher": str(tiny_bundle), "schedule.steps": "20", "optimizer.lr": "5e-3"})
    before = {name: tensor.clone() for name, tensor in load_bundle(tiny_bundle).model.state_dict().items()}
    train(config, tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [event["teacher_loss"] for event in events if "teacher_loss" in event]
    assert losses[-1] < losses[0]
    for name, tensor in load_bundle(tiny_bundle).model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_teacher_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        train(override(STUDENT, {"distill.teacher": str(tmp_path / "nowhere")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"distill\.weight is 0\.0; it must be above 0"):
        DistillConfig(weight=0.0)
