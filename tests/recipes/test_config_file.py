"""Config files that start from a recipe, and whole ones that do not."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from diptych.cli.main import main
from diptych.core.errors import ConfigError
from diptych.core.settings import merge, override, to_plain
from diptych.models.config import ResNetConfig, ViTConfig
from diptych.presets import preset
from diptych.recipes.config_file import read_config_file
from diptych.recipes.recipe import RECIPES, recipe
from diptych.recipes.small_data import recipe_for, small_data
from diptych.training.config import TrainConfig, read_config, read_run_config, write_config
from diptych.training.run import train
from tests.training.listener import Listener, interrupt


def _file(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_file_with_the_name_alone_is_the_recipe(name: str, tmp_path: Path) -> None:
    assert read_config_file(_file(tmp_path, f"recipe: {name}\n")) == recipe(name)


def test_settings_of_the_file_replace_those_of_the_recipe(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        "recipe: paper-vit-b-32\n"
        "micro_batch: null\n"
        "batch_size: 16\n"
        "optimizer: {lr: 1.0e-3, betas: [0.8, 0.9]}\n"
        "model: {text: {layers: 2}, init_temperature: 0.1}\n"
        "schedule: {steps: 2}\n",
    )
    changes = {"micro_batch": None, "batch_size": 16, "optimizer.lr": 1e-3, "optimizer.betas": (0.8, 0.9)}
    changes |= {"model.text.layers": 2, "model.init_temperature": 0.1, "schedule.epochs": None, "schedule.steps": 2}
    assert read_config_file(path) == override(recipe("paper-vit-b-32"), changes)


def test_small_data_has_its_own_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three million parameters with the few words of drawn shapes; a ViT-B/32 has 127 million."""
    path = _file(tmp_path, "recipe: small-data\ndata: {source: 'shapes:400', workers: 0}\nschedule: {steps: 1}\n")
    config = read_config_file(path)
    assert config.model == preset("photos-convnet")
    assert (config.batch_size, config.optimizer.name, config.data.positives) == (64, "muon", "class")
    assert (config.schedule.steps, config.schedule.minutes, config.schedule.warmup_steps) == (1, None, 60)
    words = ["--config", str(path), "--validation.samples", "20", "--out", str(tmp_path / "run")]
    assert main(["train", *words, "--batch-size", "8"]) == 0
    told = capsys.readouterr()
    assert " 3,051,809 parameters" in told.out + told.err
    assert read_run_config(tmp_path / "run" / "config.yaml") == override(
        config, {"validation.samples": 20, "batch_size": 8, "precision": "fp32"}
    )


def test_small_data_is_fitted_as_on_the_command_line(tmp_path: Path) -> None:
    path = _file(tmp_path, "recipe: small-data\ndata: {source: 'shapes:400', workers: 0}\n")
    fitted = read_config_file(path)
    assert fitted == override(recipe_for("shapes:400")[0], {"data.workers": 0})
    assert fitted.batch_size == 64
    assert read_config_file(path, data="shapes:100").batch_size == 16
    assert read_config_file(path, changes={"data.max_samples": 50}).batch_size == 8
    own = _file(tmp_path, "recipe: small-data\nbatch_size: 50\ndata: {source: 'shapes:400', workers: 0}\n")
    assert read_config_file(own) == override(fitted, {"batch_size": 50})
    with pytest.raises(ConfigError, match=r"my.yaml: data: unknown setting 'surce'; did you mean 'source'\?"):
        read_config_file(_file(tmp_path, "recipe: small-data\ndata: {surce: shapes}\n"))


@pytest.mark.parametrize(
    ("schedule", "limits"),
    [
        ("{steps: 2}", (None, 2, None)),
        ("{minutes: 2}", (None, None, 2.0)),
        ("{epochs: 2}", (2.0, None, None)),
        ("{epochs: null, steps: 2}", (None, 2, None)),
        ("{warmup_steps: 7}", None),
    ],
)
@pytest.mark.parametrize("name", ["small-data", "demo", "custom", None])
def test_another_length_replaces_the_recipes(
    name: str | None, schedule: str, limits: tuple[float | None, ...] | None, tmp_path: Path
) -> None:
    start = TrainConfig() if name in {None, "custom"} else recipe(name or "")
    own = (start.schedule.epochs, start.schedule.steps, start.schedule.minutes)
    named = "" if name is None else f"recipe: {name}\n"
    got = read_config_file(_file(tmp_path, f"{named}schedule: {schedule}\n")).schedule
    assert (got.epochs, got.steps, got.minutes) == (limits or own)


def test_two_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set exactly one of .* set are: epochs, steps"):
        read_config_file(_file(tmp_path, "recipe: demo\nschedule: {steps: 2, epochs: 1}\n"))


def test_times_replace_the_epochs_of_validation(tmp_path: Path) -> None:
    got = read_config_file(_file(tmp_path, "recipe: cifar10-rn\nvalidation: {times: 3}\n")).validation
    assert (got.times, got.epochs, got.metric) == (3, None, "zero_shot")


def test_another_kind_of_tower_has_its_own_defaults() -> None:
    start = small_data().model
    assert merge(start, {"image": {"image_px": 96}}).image == replace(start.image, image_px=96)
    assert merge(start, {"image": {"kind": "resnet", "width": 32}}).image == ResNetConfig(width=32)
    assert merge(preset("vit-b-16"), {"image": {"kind": "vit", "layers": 2}}).image == ViTConfig(patch_px=16, layers=2)
    with pytest.raises(ConfigError, match=r"'image.kind' is 'vitt'; known: "):
        merge(start, {"image": {"kind": "vitt"}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: small-dat\n", r"my.yaml: unknown recipe 'small-dat'; did you mean 'small-data'\?"),
        ("recipe: demo\nschedule: 3\n", r"my.yaml: 'schedule' is 3"),
        ("recipe: demo\nschedule:\n", r"my.yaml: 'schedule' is None"),
        ("recipe: demo\nschedul: {}\n", r"my.yaml: unknown setting 'schedul'; did you mean 'schedule'\?"),
        ("recipe: demo\nschedule: {stepz: 2}\n", r"unknown setting 'schedule.stepz'; did you mean 'schedule.steps'\?"),
        ("recipe: 3\n", r"my.yaml: 'recipe' is 3"),
        ("recipe:\n", r"my.yaml: 'recipe' is None"),
        ("- 1\n", r"my.yaml: the whole is \[1\]"),
        ("", r"my.yaml: the whole is None"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config_file(_file(tmp_path, text))


def test_a_reader_without_recipes_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"my.yaml: starts from a recipe, because it lacks model.image.image_px"):
        read_config(_file(tmp_path, "recipe: small-data\n"))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_whole_config_means_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with fields that are none where the recipe has a value, of another kind of tower, and after the recipe changed."""
    changed = override(
        recipe(name), {"micro_batch": None, "schedule.small_first": [], "seed": 9, "optimizer.max_grad_norm": None}
    )
    for config in (recipe(name), changed, TrainConfig(recipe=name)):
        write_config(config, tmp_path / "config.yaml")
        assert read_config_file(tmp_path / "config.yaml") == config
        assert read_run_config(tmp_path / "config.yaml") == config
        with monkeypatch.context() as patch:
            patch.setitem(RECIPES, name, lambda: override(recipe("demo"), {"batch_size": 3, "micro_batch": 3}))
            assert read_config_file(tmp_path / "config.yaml") == config
            patch.delitem(RECIPES, name)
            assert read_config_file(tmp_path / "config.yaml") == config


def test_a_config_of_the_first_version_means_what_it_meant(tmp_path: Path) -> None:
    """What its version did not have takes the defaults, not what the recipe of that name has today."""
    config = override(recipe("small-data"), {"schedule.small_first": []})
    plain = to_plain(config)
    for later in (
        "init",
        "loss",
        "distill",
        "lock",
        "validation",
        "checkpoint",
        "logs",
        "precision",
        "micro_batch",
        "ema",
    ):
        del plain[later]
    for group, names in {"augment": ["drop_words"], "optimizer": ["name"], "schedule": ["small_first"]}.items():
        for setting in names:
            del plain[group][setting]
    path = _file(tmp_path, yaml.safe_dump(plain))
    expected = override(config, {"augment.drop_words": 0.0, "optimizer.name": "adamw"})
    assert read_config_file(path) == expected
    # A run of that version that is resumed goes on in the only precision that it had.
    assert read_run_config(path) == override(expected, {"precision": "fp32"})


def test_a_run_resumes_with_its_own_settings(tiny_run: TrainConfig, finished_run: Path, tmp_path: Path) -> None:
    """Bit for bit, although it names a recipe of other settings; the finished run's name, `tiny`, is no recipe at all."""
    assert tiny_run.recipe not in RECIPES
    assert read_config_file(finished_run / "config.yaml") == override(tiny_run, {"precision": "fp32"})
    run = tmp_path / "run"
    assert train(override(tiny_run, {"recipe": "small-data"}), run, observers=[Listener(5, interrupt)]).interrupted
    assert main(["train", "--resume", str(run)]) == 0
    weights = [(folder / "bundle" / "model.safetensors").read_bytes() for folder in (finished_run, run)]
    assert weights[0] == weights[1]
