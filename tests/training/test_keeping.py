"""What a run keeps, when it validates, and when it ends early."""

import json
import math
from pathlib import Path

import pytest
import torch

from diptych.bundle.folder import load_bundle
from diptych.cli.main import main
from diptych.core.errors import BundleError, ConfigError, DataError, RunError
from diptych.core.settings import override
from diptych.evaluation.retrieval import RetrievalReport
from diptych.training.config import TrainConfig, write_config
from diptych.training.overfit import overfit_one_batch
from diptych.training.report.events import Observers
from diptych.training.run import train
from diptych.training.setup import open_data
from tests.conftest import draw_photos
from tests.training.listener import Listener
from tests.training.makers import first_weights

pytestmark = pytest.mark.usefixtures("no_curves")


def test_validation_by_epochs_and_the_best_by_zero_shot(tiny_run: TrainConfig, tmp_path: Path) -> None:
    changes = {"validation.epochs": "0.25", "validation.metric": "zero_shot", "schedule.steps": "14"}
    listener = Listener()
    result = train(override(tiny_run, changes), tmp_path / "run", observers=[listener])
    assert list(listener.validations) == [0, 4, 8, 12, 14]
    shares = {step: validation.zero_shot or 0.0 for step, validation in listener.validations.items() if step}
    assert result.best_step == max(shares, key=lambda step: (shares[step], -step))
    kept = load_bundle(tmp_path / "run" / "bundle-best")
    assert kept.origin["steps"] == result.best_step
    assert kept.metrics["during_training"]["val_zero_shot"] == pytest.approx(shares[result.best_step or 0], abs=1e-5)
    assert (tmp_path / "run" / "checkpoints" / f"step-{result.best_step:08d}").is_dir()


def test_a_run_ends_when_validation_no_longer_gets_better(
    tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.0, 0.1, 0.5, 0.4, 0.5, 0.3, 0.9, 0.9])
    monkeypatch.setattr(RetrievalReport, "mean_r1", property(lambda _: next(scores)))
    changes = {"validation.times": "10", "schedule.steps": "20", "validation.patience": "2"}
    listener = Listener()
    result = train(override(tiny_run, changes), tmp_path / "run", observers=[listener])
    # The scores of steps 2 to 10: that of step 6 is the best, and neither of the next two is better.
    assert (result.stopped_early, result.best_step, result.steps) == (True, 6, 10)
    assert result.bundle is not None


@pytest.mark.parametrize("metric", ["recall", "loss"])
def test_the_best_moment_goes_by_the_chosen_figure(metric: str, tiny_run: TrainConfig, tmp_path: Path) -> None:
    listener = Listener()
    config = override(tiny_run, {"validation.metric": metric, "validation.times": "5"})
    best = train(config, tmp_path / "run", observers=[listener]).best_step
    later = {step: value for step, value in listener.validations.items() if step}
    figures = {step: -value.loss if metric == "loss" else value.retrieval.mean_r1 for step, value in later.items()}
    assert best == max(figures, key=lambda step: (figures[step], -step))


def test_zero_shot_needs_labels(tiny_run: TrainConfig, tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(30)]
    draw_photos(tmp_path, names)
    rows = "".join(f"{name},picture {name}\n" for name in names)
    (tmp_path / "rows.csv").write_text(f"image,caption\n{rows}")
    config = override(
        tiny_run,
        {"data.source": f"csv:{tmp_path / 'rows.csv'}", "validation.metric": "zero_shot", "data.val_fraction": "0.3"},
    )
    with pytest.raises(ConfigError, match="zero_shot', but not all of the data has labels"):
        open_data(config)


def test_a_run_says_what_knowing_nothing_costs(tiny_run: TrainConfig, tmp_path: Path) -> None:
    listener = Listener()
    train(override(tiny_run, {"schedule.steps": "1"}), tmp_path / "run", observers=[listener])
    assert [text for text in listener.messages if f"chance is ln 16 = {math.log(16):.2f}" in text]


def test_averaged_weights_are_what_is_measured_and_kept(tiny_run: TrainConfig, tmp_path: Path) -> None:
    """After one step, of which the average has nine elevenths; and the loss of a bundle of these weights is that of the run."""
    one_step = override(tiny_run, {"schedule.steps": "1", "schedule.warmup_steps": "0", "schedule.shape": "constant"})
    listener, fresh = Listener(), Listener()
    own = train(one_step, tmp_path / "own").bundle
    averaged = train(override(one_step, {"ema": "0.9"}), tmp_path / "averaged", observers=[listener]).bundle
    assert own is not None
    assert averaged is not None
    start, last = first_weights(own), load_bundle(own).model.state_dict()
    for name, weight in load_bundle(averaged).model.state_dict().items():
        torch.testing.assert_close(weight, start[name].lerp(last[name], 9 / 11))
    assert load_bundle(averaged).origin["ema"] == 0.9
    train(override(one_step, {"init": str(averaged)}), tmp_path / "from it", observers=[fresh])
    assert fresh.validations[0].loss == pytest.approx(listener.validations[1].loss, abs=1e-6)


def test_an_observer_that_cannot_write_is_dropped_and_the_others_are_told() -> None:
    class Full(Listener):
        def on_message(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    listener = Listener()
    observers = Observers([Full(), listener])
    observers.say("first")
    observers.say("second")
    assert listener.messages == [
        "Full cannot write any more (No space left on device); the run goes on without it",
        "first",
        "second",
    ]


def test_a_bundle_that_cannot_be_saved_at_the_end_is_an_error_with_the_way_out(
    tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise BundleError("run/bundle: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr("diptych.training.checkpoint.manager.save_bundle", full)
        with pytest.raises(RunError, match=r"could not be saved; make room, then: diptych train --resume"):
            train(tiny_run, tmp_path / "run")
    assert train(tiny_run, tmp_path / "run", resume=True).bundle is not None


def test_the_check_learns_a_few_pairs_by_heart_and_writes_nothing(tiny_run: TrainConfig, tmp_path: Path) -> None:
    result = overfit_one_batch(override(tiny_run, {"micro_batch": "8", "ema": "0.9", "lock.image": "all"}))
    assert result.learned
    assert result.first_loss == pytest.approx(math.log(result.num_pairs), rel=0.5)
    assert result.diagnosis is None
    assert result.last_loss < 0.05


def test_the_check_says_when_nothing_can_be_learned(
    tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All pictures alike, and all under different captions."""
    from PIL import Image

    rows = []
    for i in range(40):
        Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,caption {i}\n")
    (tmp_path / "rows.csv").write_text("image,caption\n" + "".join(rows))
    config = override(
        tiny_run, {"data.source": f"csv:{tmp_path / 'rows.csv'}", "data.val_split": "all", "batch_size": "8"}
    )
    write_config(config, tmp_path / "config.yaml")
    monkeypatch.setattr("diptych.training.overfit._MAX_STEPS", 20)
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--check", "--out", str(tmp_path / "run")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "-> all images of a batch have the same embedding" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("captions", [["the same"] * 40, ["", *["the same"] * 39]])
def test_the_check_refuses_captions_that_are_all_equal(
    tiny_run: TrainConfig, tmp_path: Path, captions: list[str]
) -> None:
    draw_photos(tmp_path, [f"{i}.png" for i in range(40)])
    rows = [{"image": f"{i}.png", "caption": caption} for i, caption in enumerate(captions)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = override(
        tiny_run, {"data.source": f"json:{tmp_path / 'rows.json'}", "data.val_split": "all", "batch_size": "8"}
    )
    with pytest.raises(DataError, match=r"nothing can be learned from 8 pairs .* the first caption is 'the same'"):
        overfit_one_batch(config)


def test_tensorboard_shows_similarities_and_captions(finished_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished_run / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert set(tags["histograms"]) == {"similarity/partners", "similarity/others"}
    assert tags["images"] == ["captions"]
    assert [event.step for event in board.Images("captions")] == [0, 5, 10]
    partners = board.Histograms("similarity/partners")[-1].histogram_value
    assert partners.num == 32
    assert -1 <= partners.min <= partners.max <= 1.001
    assert {"train/loss", "train/logit_scale", "train/grad_norm", "validation/loss"} <= set(tags["scalars"])
