"""Each recipe trains for a few steps on small real data, with a preset that is small enough."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from diptych.bundle.hugging_face_writer import write_hugging_face
from diptych.bundle.libraries import library_reasons
from diptych.bundle.open_clip import write_open_clip
from diptych.cli.main import main
from diptych.core.errors import ConfigError
from diptych.core.settings import override
from diptych.models.clip import CLIP
from diptych.recipes.recipe import RECIPES, recipe
from diptych.tokenizers.load_tokenizer import train_tokenizer
from diptych.training.config import read_config, write_config
from diptych.training.run import train
from tests.conftest import TINY_MODEL, draw_photos

pytestmark = pytest.mark.usefixtures("no_curves")

_DATA = {"demo": "shapes:64", "shapes": "shapes:64"}


def _cifar(folder: Path) -> str:
    for split, num in (("train", 12), ("test", 2)):
        for name in ("cat", "ship"):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(num):
                Image.new("RGB", (32, 32), (20 * i, 90, 200 if name == "ship" else 20)).save(place / f"{i:04d}.jpg")
    return f"cifar10:{folder}"


def _flickr(folder: Path) -> str:
    names = [f"{i}.jpg" for i in range(20)]
    draw_photos(folder / "images", names)
    rows = [f"{name}| {number}| Photo {name[:-4]}, caption {number}." for name in names for number in range(2)]
    (folder / "results.csv").write_text("image_name| comment_number| comment\n" + "\n".join(rows) + "\n", "utf-8")
    return f"flickr30k:{folder}"


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_trains_and_measures(name: str, tmp_path: Path) -> None:
    data = _cifar(tmp_path / "data") if name == "cifar10-rn" else _DATA.get(name) or _flickr(tmp_path / "data")
    config = override(
        recipe(name),
        {
            "data.source": data,
            "data.workers": 0,
            "data.val_fraction": 0.3,
            "schedule.epochs": None,
            "schedule.minutes": None,
            "schedule.steps": 3,
            "batch_size": 8,
            "micro_batch": 4 if recipe(name).micro_batch else None,
            "device": "cpu",
        },
    )
    image = config.model.image if name in {"cifar10-rn", "small-data"} else TINY_MODEL.image
    small = replace(TINY_MODEL, image=image, embed_dim=16)
    result = train(replace(config, model=small), tmp_path / "run")
    assert result.steps == 3
    assert (tmp_path / "run" / "bundle" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_bears_its_name_and_survives_a_file(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    assert config.recipe == name
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


MODELS = {
    "demo": (64, 64, 32, 274_673),
    "small-data": (256, 112, 48, 3_990_561),
    "small-vit": (256, 96, 77, 22_484_225),
    "flickr30k-small": (256, 64, 48, 5_055_193),
    "flickr30k-vit-b-16": (512, 224, 77, 137_011_201),
    "flickr30k-bert": (512, 224, 77, 149_620_737),
    "shapes": (256, 64, 64, 9_708_545),
    "paper-vit-b-32": (512, 224, 77, 151_277_313),
    "cifar10-rn": (512, 32, 77, 51_688_753),
}
"""By recipe: width of the embeddings, side of the pictures, tokens of a text, parameters."""


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipes_own_model_has_its_size_and_shapes(name: str) -> None:
    """On the `meta` device, without memory for weights."""
    embed_dim, side, num_tokens, num_parameters = MODELS[name]
    with torch.device("meta"):
        model = CLIP(recipe(name).model)
    pixels = torch.empty(2, 3, side, side, device="meta")
    ids = torch.empty(2, num_tokens, dtype=torch.int64, device="meta")
    out = model(pixels, ids, torch.tensor([3, num_tokens]))
    assert out.image_emb.shape == out.text_emb.shape == (2, embed_dim)
    assert (model.config.image.image_px, model.config.text.context_length) == (side, num_tokens)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


LIBRARIES = {
    "demo": ("its convolutional stem, its mean pooling", "its convolutional stem"),
    "small-data": ("its convolutional network, its bidirectional text tower, its text tower's mean pooling",) * 2,
    "small-vit": ("", ""),
    "flickr30k-small": ("its convolutional stem, its mean pooling", "its convolutional stem"),
    "flickr30k-vit-b-16": ("", ""),
    "flickr30k-bert": ("its bidirectional text tower, its text tower's cls pooling",) * 2,
    "shapes": ("its mean pooling", ""),
    "paper-vit-b-32": ("", ""),
    "cifar10-rn": ("its ResNet", ""),
}
"""The reasons why Hugging Face and open_clip cannot load the model of a recipe, by recipe."""


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipes_own_model_goes_where_the_list_says(name: str, tmp_path: Path) -> None:
    """The export accepts and refuses the same models as the check. It cannot write the weights of a model on `meta`."""
    config, reasons = recipe(name).model, library_reasons(recipe(name).model)
    assert reasons == {
        "onnx": [],
        **{
            to: why.split(", ") if why else []
            for to, why in zip(("hugging-face", "open-clip"), LIBRARIES[name], strict=True)
        },
    }
    tokenizer = train_tokenizer(
        config.text.tokenizer, ["a dog"], vocab_size=config.text.vocab_size, context_length=config.text.context_length
    )
    for write, to in ((write_hugging_face, "hugging-face"), (write_open_clip, "open-clip")):
        error = ConfigError if reasons[to] else NotImplementedError  # The latter is PyTorch's, when it copies weights.
        with pytest.raises(error):
            write(CLIP.without_memory(config), tokenizer, tmp_path)


def test_the_list_of_recipes_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    table = capsys.readouterr().out.split("Libraries that load", 1)[1].splitlines()[1:]
    assert max(map(len, table[: 2 + len(RECIPES)])) <= 80
    assert [line.split()[0] for line in table[2 : 2 + len(RECIPES)]] == list(RECIPES)
