"""`diptych train DATA`: a recipe is chosen, and told."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.cli.run_settings import base_config
from diptych.core.errors import ConfigError
from diptych.recipes import small_data
from diptych.recipes.small_data import recipe_for
from diptych.training.config import read_config
from tests.conftest import draw_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Thirty pictures of 90 x 70 px, of which one cannot be read."""
    rows, generator = [], np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(generator.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"noise number {number}"})
    (tmp_path / "0.png").write_bytes(b"no picture")
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["{}", "json:{}", "--data json:{}"])
def test_data_alone_is_trained(
    form: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--steps", "2", "--data.workers", "0", "--data.val-fraction", "0.2", "--data.max-skipped", "0.5"]
    assert main(["train", *form.format(photos).split(), *words]) == 0
    told = capsys.readouterr()
    assert "No recipe was named: small-data, for" in told.out + told.err
    assert "holds 30 pictures of about 70 px: little data" in told.out + told.err
    config = read_config(tmp_path / "runs" / "small-data" / "config.yaml")
    assert (config.recipe, config.batch_size, config.schedule.steps) == ("small-data", 8, 2)
    assert config.model.image.kind == "convnet"
    assert config.model.image.image_px == 112
    assert config.validation.metric == "recall"


def test_a_run_on_classes_tells_how_often_it_names_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (32, 32), (colour[0] - number, 30, colour[2] - number)).save(
                tmp_path / "colours" / name / f"{number}.png"
            )
    assert (
        main(["train", "class-folder:colours", "--steps", "3", "--data.workers", "0", "--data.val-fraction", "0.4"])
        == 0
    )
    told = capsys.readouterr().out
    assert "Zero-shot on val:" in told
    assert "zero-shot " in told.split("Zero-shot on val")[0], "so do the validations"
    assert "Retrieval" not in told
    card = json.loads((tmp_path / "runs" / "small-data" / "bundle" / "config.json").read_text("utf-8"))
    assert 0 <= card["metrics"]["zero_shot"]["top1"] <= 1
    assert "retrieval" in card["metrics"]


def test_drawings_of_64_px_count_as_photos() -> None:
    config, why = recipe_for("shapes:2000")
    assert config.model.image.image_px == 112
    assert (config.batch_size, config.data.source) == (128, "shapes:2000")
    assert "pictures of about 64 px: little data" in why


def test_icons(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    config, _ = recipe_for(f"class-folder:{tmp_path}")
    assert config.validation.metric == "zero_shot"
    assert config.augment.drop_words == 0
    assert config.model.image.image_px == 32
    assert (config.batch_size, config.schedule.small_first) == (8, ())


@pytest.mark.parametrize(
    ("num", "batch"), [(1, 2), (3, 3), (9, 8), (40, 8), (100, 16), (500, 64), (512, 128), (2000, 128)]
)
def test_a_batch_is_a_quarter_of_little_data(num: int, batch: int) -> None:
    config, _ = recipe_for("shapes:2000", changes={"data.train_split": "all", "data.max_samples": num})
    assert config.batch_size == batch


@pytest.mark.parametrize(
    ("num", "words", "batch"),
    [
        (9, "", 7),
        (30, "", 8),
        (30, "--data.val-fraction 0.8", 7),
        (9, "--data.train-split all --data.val-split all", 8),
        (30, "--max-samples 5", 5),
        (30, "--max-samples 5 --batch-size 3", 3),
    ],
)
def test_a_batch_is_fitted_to_the_training_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num: int, words: str, batch: int
) -> None:
    draw_photos(tmp_path, [f"{i:03d}.png" for i in range(num)])
    rows = "".join(f"{i:03d}.png,picture {i}\n" for i in range(num))
    (tmp_path / "rows.csv").write_text(f"image,caption\n{rows}", encoding="utf-8")
    out = tmp_path / "run"
    line = ["train", "small-data", "--data", f"csv:{tmp_path / 'rows.csv'}", "--steps", "1", "--data.workers", "0"]
    assert main([*line, "--out", str(out), *words.split()]) == 0, capsys.readouterr().err
    assert read_config(out / "config.yaml").batch_size == batch


def test_large_data_wants_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_data, "_SMALL", 100)
    with pytest.raises(ConfigError, match=r"small-data is chosen for up to 100: name a recipe"):
        recipe_for("shapes:101")
    assert base_config("small-data", None, "shapes:101").data.source == "shapes:101", "asked for, it is given"


def test_named_it_is_fitted_to_the_data_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert base_config("small-data", None, "shapes:40") == base_config(None, None, "shapes:40")
    assert capsys.readouterr().out.count("No recipe was named") == 1


def test_a_word_that_is_neither_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "smal-data"]) == 2
    assert "did you mean 'small-data'" in capsys.readouterr().err


def test_a_config_and_data_need_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(tmp_path / "none.yaml"), "--data", "shapes:100"]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
