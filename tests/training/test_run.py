"""The loop and what it leaves behind."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diptych.bundle.folder import load_bundle
from diptych.core.errors import ConfigError, DataError, DiptychWarning, RunError
from diptych.core.settings import override
from diptych.data.batches.loader import TrainingExamples, training_batches
from diptych.data.batches.rows import RowTable
from diptych.data.open_source import open_source
from diptych.data.sources.splits import take_split
from diptych.models.clip import CLIP
from diptych.tokenizers.load_tokenizer import train_tokenizer
from diptych.training.config import TrainConfig, read_config, write_config
from diptych.training.loss import LossConfig
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.run import train
from diptych.training.run_folder import RunResult
from diptych.training.step import TrainingStep
from tests.conftest import draw_photos
from tests.training.listener import Listener, interrupt
from tests.training.makers import first_weights

pytestmark = pytest.mark.usefixtures("no_curves")


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def _assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = _weights(one), _weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_run_leaves_what_it_says(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert {"config.yaml", "tokenizer.json", "events.jsonl", "curves.png", "checkpoints", "bundle"} <= names
    assert not [name for name in names if name.startswith(".")]
    events = [json.loads(line) for line in (finished_run / "events.jsonl").read_text("utf-8").splitlines()]
    losses = [event for event in events if "loss" in event]
    assert [event["step"] for event in losses] == [1, 5, 10]
    assert all(event["ln_n"] == round(math.log(16), 6) for event in losses)
    assert [event["step"] for event in events if "val_loss" in event] == [0, 5, 10]
    checkpoints = {path.name for path in (finished_run / "checkpoints").iterdir()}
    assert {"step-00000010"} <= checkpoints <= {"step-00000010", "step-00000005"}  # That of the best validation, too.


def test_its_config_runs_again_to_the_same_weights(finished_run: Path, tmp_path: Path) -> None:
    train(read_config(finished_run / "config.yaml"), tmp_path / "again")
    _assert_same_weights(finished_run, tmp_path / "again")
    again, first = (path.joinpath("config.yaml").read_text("utf-8") for path in (tmp_path / "again", finished_run))
    assert again == first


def test_a_step_starts_from_the_seeds_weights_and_is_as_long_as_the_learning_rate(
    tiny_run: TrainConfig, tmp_path: Path
) -> None:
    """The first step of AdamW is linear in the learning rate, and nearly as long as it for the largest gradients."""
    changes = {"seed": "7", "schedule.steps": "1", "schedule.warmup_steps": "0", "schedule.shape": "constant"}
    changes["optimizer.weight_decay"] = "0"
    for lr in ("0.001", "0.002"):
        train(override(tiny_run, {**changes, "optimizer.lr": lr, "validation.times": "1"}), tmp_path / lr)
    once, twice = (_weights(tmp_path / lr) for lr in ("0.001", "0.002"))
    start = first_weights(tmp_path / "0.001" / "bundle", seed=7)
    assert start.keys() == once.keys()
    for name, weight in start.items():
        torch.testing.assert_close(2 * once[name] - twice[name], weight, atol=2e-6, rtol=0)
    longest = max(float((once[name] - weight).abs().max()) for name, weight in start.items())
    assert longest == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize(("stop", "kind"), [(3, signal.SIGINT), (5, signal.SIGTERM), (9, signal.SIGINT)])
def test_an_interrupted_and_resumed_run_equals_the_unbroken_one(
    finished_run: Path, tiny_run: TrainConfig, tmp_path: Path, stop: int, kind: signal.Signals
) -> None:
    """Bit for bit."""
    run, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    listener = Listener(stop, lambda: os.kill(os.getpid(), kind))
    stopped = train(tiny_run, run, observers=[listener])
    assert (stopped.interrupted, stopped.bundle, stopped.steps, listener.num_closed) == (True, None, stop, 1)
    assert not (run / "bundle").exists()
    assert signal.getsignal(signal.SIGINT) is before
    goes_on = Listener()
    finished = train(tiny_run, run, resume=True, observers=[goes_on])
    assert (finished.interrupted, finished.steps) == (False, 10)
    assert [report.step for report in goes_on.steps] == list(range(stop + 1, 11))
    _assert_same_weights(finished_run, run)


def test_a_finished_run_that_is_resumed_stays_as_it_is(
    tiny_run: TrainConfig, tmp_path: Path, finished_run: Path
) -> None:
    train(tiny_run, tmp_path / "run")
    assert train(tiny_run, tmp_path / "run", resume=True).steps == 10
    _assert_same_weights(finished_run, tmp_path / "run")


def test_a_checkpoint_that_died_half_written_is_not_used(
    tiny_run: TrainConfig, tmp_path: Path, finished_run: Path
) -> None:
    run = tmp_path / "run"
    train(tiny_run, run, observers=[Listener(4, interrupt)])
    half = run / "checkpoints" / ".step-00000008.new"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    train(tiny_run, run, resume=True)
    _assert_same_weights(finished_run, run)


def test_a_run_folder_is_refused_untouched(tiny_run: TrainConfig, finished_run: Path, tmp_path: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in finished_run.rglob("*"))
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--overwrite.*--out"):
        train(tiny_run, finished_run)
    with pytest.raises(RunError, match="exclude each other"):
        train(tiny_run, finished_run, overwrite=True, resume=True)
    assert sorted(path.stat().st_mtime_ns for path in finished_run.rglob("*")) == before
    with pytest.raises(RunError, match="holds no run to resume"):
        train(tiny_run, tmp_path / "gone", resume=True)
    assert not (tmp_path / "gone").exists()
    (tmp_path / "thesis.tex").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="is not empty and holds no run"):
            train(tiny_run, tmp_path, overwrite=overwrite)
    with pytest.raises(RunError, match="is a file"):
        train(tiny_run, tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "dear"


def test_overwrite_replaces_all_of_the_old_run(tiny_run: TrainConfig, tmp_path: Path, finished_run: Path) -> None:
    run = tmp_path / "run"
    train(override(tiny_run, {"schedule.steps": "4"}), run)
    (run / "bundle" / "old.txt").write_text("old")
    (run / "checkpoints" / "step-00000099").mkdir()
    (run / "notes.txt").write_text("mine")
    train(tiny_run, run, overwrite=True)
    assert not (run / "bundle" / "old.txt").exists()
    assert not (run / "checkpoints" / "step-00000099").exists()
    assert (run / "notes.txt").read_text() == "mine", "a run removes only what runs write"
    _assert_same_weights(finished_run, run)


def test_a_run_that_cannot_start_leaves_the_old_one(tiny_run: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(override(tiny_run, {"schedule.steps": "2"}), run)
    with pytest.raises(DataError):
        train(override(tiny_run, {"data.source": "json:/nowhere.json"}), run, overwrite=True)
    with pytest.raises(ConfigError, match=r"batch_size 300 is larger than the training data \(256 samples\)"):
        train(override(tiny_run, {"batch_size": "300"}), run, overwrite=True)
    assert load_bundle(run / "bundle").origin["steps"] == 2


def test_a_finished_run_has_its_curves(finished_run: Path) -> None:
    assert (finished_run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_reports(tiny_run: TrainConfig, tmp_path: Path) -> None:
    listener = Listener()
    result: RunResult = train(tiny_run, tmp_path / "run", observers=[listener])
    assert [report.step for report in listener.steps] == list(range(1, 11))
    assert [report.progress for report in listener.steps] == pytest.approx([step / 10 for step in range(1, 11)])
    assert list(listener.validations) == [0, 5, 10]
    assert [round(report.lr / 2e-3, 4) for report in listener.steps[:2]] == [
        0.5,
        round((1 + math.cos(0.1 * math.pi)) / 2, 4),
    ]
    assert listener.steps[3].epoch == 4 / 16
    assert result.retrieval is not None
    assert result.retrieval.protocol["images"] == 900
    assert listener.num_closed == 1


def _captioned(folder: Path, num: int, broken: int) -> str:
    from tests.conftest import draw_photos

    names = [f"{i:03d}.png" for i in range(num)]
    draw_photos(folder, names)
    for name in names[:broken]:
        (folder / name).write_bytes(b"broken")
    rows = [{"image": name, "caption": f"picture {name}", "split": "train"} for name in names]
    rows[-8:] = [{**row, "split": "val"} for row in rows[-8:]]
    (folder / "rows.json").write_text(json.dumps(rows), "utf-8")
    return f"json:{folder / 'rows.json'}"


def test_too_many_broken_images_stop_the_run_and_are_listed(tiny_run: TrainConfig, tmp_path: Path) -> None:
    config = override(tiny_run, {"data.source": _captioned(tmp_path / "set", 40, 10)})
    with pytest.raises(DataError, match=r"of 32 samples cannot be read, more than 1% .* listed in .*skipped\.jsonl"):
        train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "skipped.jsonl").read_text("utf-8").splitlines()
    listed = {json.loads(line)["key"] for line in lines}
    assert 2 <= len(listed) == len(lines)
    assert listed <= {f"{i:03d}.png" for i in range(10)}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_source_without_one_readable_image_is_an_error_of_one_line(
    tiny_run: TrainConfig, tmp_path: Path, workers: str
) -> None:
    source = _captioned(tmp_path / "set", 40, 40)
    config = override(tiny_run, {"data.source": source, "data.workers": workers})
    with pytest.raises(DataError, match=r"none of \d+ images can be read; the first: .*\.png") as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_few_broken_images_are_counted_once_each_also_over_a_resume(tiny_run: TrainConfig, tmp_path: Path) -> None:
    source = _captioned(tmp_path / "set", 40, 2)
    config = override(tiny_run, {"data.source": source, "data.max_skipped": "0.2"})
    assert train(config, tmp_path / "one").num_skipped == 2
    train(config, tmp_path / "two", observers=[Listener(4, interrupt)])
    assert train(config, tmp_path / "two", resume=True).num_skipped == 2
    assert len((tmp_path / "two" / "skipped.jsonl").read_text("utf-8").splitlines()) == 2
    _assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_captions_that_lose_their_tail_are_told(tiny_run: TrainConfig, tmp_path: Path) -> None:
    listener = Listener()
    short = override(tiny_run, {"model.text.context_length": "4", "schedule.steps": "2"})
    with pytest.warns(
        DiptychWarning, match=r"texts longer than 4 tokens were truncated: \d+"
    ):  # Those of the validation.
        train(short, tmp_path / "run", observers=[listener])
    assert any("captions were longer than 4 tokens and were truncated" in message for message in listener.messages)


def test_character_tokenizer_trains_too(character_run: TrainConfig, tmp_path: Path) -> None:
    result = train(override(character_run, {"schedule.steps": "2"}), tmp_path / "run")
    assert result.bundle is not None
    bundle = load_bundle(result.bundle)
    assert bundle.config.text.vocab_size == bundle.tokenizer.vocab_size < 40


def test_a_run_goes_on_from_another_models_weights(tiny_run: TrainConfig, tiny_bundle: Path, tmp_path: Path) -> None:
    """Model, tokenizer and transform are the bundle's, also after a resume; the first loss is that of the bundle."""
    from_bundle = override(tiny_run, {"init": str(tiny_bundle), "model.text.layers": "2"})
    before, after = Listener(3, interrupt), Listener()
    train(from_bundle, tmp_path / "run", observers=[before])
    saved = read_config(tmp_path / "run" / "config.yaml")
    assert (saved.model, saved.init) == (load_bundle(tiny_bundle).config, str(tiny_bundle))
    result = train(saved, tmp_path / "run", resume=True, observers=[after])
    assert [report.step for report in after.steps] == [4, 5, 6, 7, 8, 9, 10]
    assert result.bundle is not None
    assert load_bundle(result.bundle).origin["init"] == str(tiny_bundle)
    fresh = Listener()
    train(tiny_run, tmp_path / "fresh", observers=[fresh])
    assert before.steps[0].result.loss < fresh.steps[0].result.loss - 0.05


def test_an_epoch_of_all_pairs_is_as_long_as_there_are_captions(tiny_run: TrainConfig, tmp_path: Path) -> None:
    config = override(tiny_run, {"data.caption": "all", "schedule.steps": "none", "schedule.epochs": "1"})
    pairs = len(RowTable(take_split(open_source("shapes:256"), "train"), "all"))
    assert pairs > 512
    assert train(config, tmp_path / "run").steps == pairs // 16


def test_a_batch_is_learned_by_heart(tiny_run: TrainConfig) -> None:
    torch.manual_seed(0)
    source = take_split(open_source("shapes:8"), "train")
    captions = [caption for i in range(8) for caption in source.captions(i)]
    tokenizer = train_tokenizer("learned-bpe", captions, vocab_size=300, context_length=24)
    data = override(tiny_run.data, {"caption": "first", "positives": "pair"})
    examples = TrainingExamples(
        source, config=data, augment=tiny_run.augment, pixels=tiny_run.model.pixels, image_px=32, seed=0
    )
    batch = next(training_batches(examples, tokenizer, batch_size=8))
    model = CLIP(tiny_run.model)
    step = TrainingStep(model, build_optimizers(model, OptimizerConfig()))
    results = [step(batch, lr=5e-3, seed=number) for number in range(60)]
    assert 0.5 * math.log(8) < results[0].loss < 2.5 * math.log(8)
    assert results[-1].loss < 0.1 * math.log(8)
    assert (results[-1].image_to_text, results[-1].text_to_image) == (1.0, 1.0)
    assert model.logit_scale.item() <= 100.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_told_with_its_samples_and_stops_the_run_in_the_end(
    tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    """The weights stay as they were, so that the last checkpoint is a good one."""
    whole = LossConfig.__call__

    def broken(self: LossConfig, image_emb: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        return whole(self, image_emb * (bad if image_emb.requires_grad else 1.0), *rest, **options)

    monkeypatch.setattr(LossConfig, "__call__", broken)
    listener, config = Listener(), override(tiny_run, {"schedule.steps": "30", "data.positives": "pair"})
    with pytest.raises(
        RunError,
        match=r"not finite, 10 steps in a row: the weights have diverged; the learning rate is .*lower it \(--lr\)",
    ):
        train(config, tmp_path / "run", observers=[listener])
    told = [message for message in listener.messages if "skipped: loss nan" in message]
    assert len(told) == 9
    assert all(message.count(", ") >= 15 for message in told)  # The keys of the batch.


def test_config_files(tiny_run: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    write_config(tiny_run, path)
    assert read_config(path) == tiny_run
    for content, message in (
        ("a: [", "c.yaml: is not YAML"),
        ("batchsize: 3", "did you mean 'batch_size'"),
        ("- 1", "c.yaml: the whole is"),
        ("", "c.yaml: the whole is None"),
        ("batch_size: many", "'batch_size' is 'many'"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message) as caught:
            read_config(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "gone.yaml")


def test_oddities_of_the_data_are_said_at_the_start(tiny_run: TrainConfig, tmp_path: Path) -> None:
    draw_photos(tmp_path, [f"{i}.png" for i in range(40)])
    rows = [{"image": f"{i}.png", "captions": ["", f"caption {i}"]} for i in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = override(tiny_run, {"data.source": f"json:{tmp_path / 'rows.json'}", "data.val_split": "all"})
    train(config, tmp_path / "run")
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "Data: empty captions: left out (40; 0.png, 1.png, 2.png)" in events
