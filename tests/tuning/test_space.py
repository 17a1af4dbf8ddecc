"""What is tried: default spaces, files, and that values go together."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from diptych.core.errors import ConfigError
from diptych.models.config import ViTConfig
from diptych.presets import preset
from diptych.training.config import TrainConfig
from diptych.tuning.space import Dimension, Space, reduced
from diptych.tuning.spaces import default_dimensions, read_dimensions
from diptych.tuning.study import quiet_optuna, suggest
from diptych.tuning.study_folder import prepare_space
from tests.conftest import TINY_RUN

BASE = TrainConfig(model=preset("vit-b-32"))


def _names(base: TrainConfig, priority: str) -> list[str]:
    return [dimension.name for dimension in default_dimensions(base, priority)]  # type: ignore[arg-type]


def test_priorities_go_further_down() -> None:
    high = ["lr", "temperature", "batch_size", "weight_decay"]
    medium = [*high, "text_layers", "image_layers", "width", "dropout"]
    assert _names(BASE, "high") == high
    assert _names(BASE, "medium") == medium
    assert _names(BASE, "low") == [*medium, "heads", "mlp_ratio"]


def test_what_a_model_does_not_have_is_not_tried() -> None:
    resnet = replace(BASE, model=preset("rn50"))
    assert "image_layers" not in _names(resnet, "low")
    assert all(not field.startswith("model.image") for d in default_dimensions(resnet, "low") for field in d.fields)
    assert _names(replace(BASE, init="some/bundle"), "low") == ["lr", "batch_size", "weight_decay"]


@pytest.mark.parametrize("priority", ["high", "medium", "low"])
def test_what_is_proposed_goes_together(priority: str) -> None:
    space = reduced(Space(BASE, default_dimensions(BASE, priority)), print)  # type: ignore[arg-type]
    seen = set()
    with quiet_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(40):
            values = suggest(study.ask(), space)
            config = space.settings(values)
            assert config.model.own_text.width % config.model.own_text.heads == 0
            assert isinstance(config.model.image, ViTConfig)
            assert config.model.image.width % config.model.image.heads == 0
            seen.add((config.model.own_text.width, config.model.own_text.heads))
    if priority == "low":
        assert seen == {(512, 8), (512, 16), (768, 8), (768, 12), (768, 16), (1024, 8), (1024, 16)}


def test_a_choice_that_goes_with_nothing_is_told_and_left_out() -> None:
    told: list[str] = []
    width = Dimension(name="model.text.width", fields=("model.text.width",), choices=(512, 500, 768))
    space = reduced(Space(BASE, (width,)), told.append)
    assert space.dimensions[0].choices == (512, 768)
    assert told == ["model.text.width 500 is not tried: model.text: width 500 is not a multiple of heads 8"]


def test_batches_larger_than_the_data_are_left_out() -> None:
    told: list[str] = []
    batch = Dimension(name="batch_size", fields=("batch_size",), choices=(16, 10_000))
    assert prepare_space(TINY_RUN, (batch,), told.append).dimensions[0].choices == (16,)
    assert "batch_size 10000 is larger than the training data" in told[0]


def test_a_file_replaces_the_default(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "optimizer.lr: {low: 1e-5, high: 1e-3, log: true}\nbatch_size: [32, 64]\n"
        "width: {fields: [model.image.width, model.text.width], choices: [256, 512]}\noptimizer.eps: [1e-6, 1e-8]\n"
        "model.text.layers: {low: 2, high: 6, integer: true}\n",
        encoding="utf-8",
    )
    lr, batch, width, eps, layers = read_dimensions(path)
    assert (lr.low, lr.high, lr.log) == (1e-5, 1e-3, True)
    assert batch == Dimension(name="batch_size", fields=("batch_size",), choices=(32, 64))
    assert width.fields == ("model.image.width", "model.text.width")
    assert eps.choices == (1e-6, 1e-8)
    assert layers.ends == (2, 6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimizer.lrr: [1.0e-3]", "did you mean 'optimizer.lr'"),
        ("optimizer: [1]", "optimizer contains settings"),
        ("optimizer.lr: {low: 1e-3, high: 1e-3}", "optimizer.lr has an empty range, from 0.001 to 0.001"),
        ("optimizer.lr: {low: 0, high: 1e-3, log: true}", "must begin above 0"),
        ("optimizer.lr: {low: -1, high: 1e-3}", "lr -1.0"),
        ("optimizer.lr: {low: 1e-3}", "has no high"),
        ("optimizer.lr: {low: much, high: 1e-3}", "'much'; it must be a number"),
        ("optimizer.lr: {lo: 1, high: 2}", "did you mean 'low'"),
        ("optimizer.lr: {choices: [1], high: 2}", "choices and a range"),
        ("optimizer.lr: 3", "write a list of choices"),
        ("batch_size: []", "a list with at least one item"),
        ("batch_size: [[1]]", "must be one value"),
        ("batch_size: [8, 8]", "a choice twice"),
        ("batch_size: [0]", "none of \\[0\\] for batch_size"),
        ("", "lists nothing to try"),
        ("a: [", "is not YAML"),
    ],
)
def test_files_that_tell_nothing(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        reduced(Space(TINY_RUN, read_dimensions(path)), print)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_dimensions(tmp_path / "none.yaml")
