"""What is exported, the peers load as their own: features, pixels and ids. And ten real photos, all the way through."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.bundle.folder import Bundle, require_bundle
from diptych.bundle.hugging_face import hugging_face_names
from diptych.bundle.open_bundle import export_bundle, open_bundle
from diptych.bundle.openai import openai_names
from diptych.bundle.weights_facts import WeightsFacts
from diptych.core.errors import ConfigError
from diptych.images.tensors import normalize
from diptych.images.transforms import PixelConfig, evaluation_pixels, height_width
from diptych.inference.loaded import LoadedBundle
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.presets import PRESETS
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from tests import peers
from tests.conftest import draw_photos
from tests.parity.models import (
    RESNET,
    VIT,
    assert_parity,
    encode_hugging_face,
    encode_open_clip,
    hugging_face_model,
    open_clip_model,
    save_hugging_face,
    shaken,
)
from tokenizers import Tokenizer as Engine

TEXTS = ["a dog in the snow", "Two CHILDREN on a swing, laughing!", "a red circle", "", "the 1990s café"]
TEXT = TextConfig(tokenizer="clip-bpe", vocab_size=49408, width=64, layers=2, heads=2)
MODELS = {
    "vit": CLIPConfig(embed_dim=32, image=ViTConfig(image_px=64, patch_px=16, width=80, layers=2, heads=5), text=TEXT),
    "vit, mean, quick_gelu, bilinear, other pixels": CLIPConfig(
        embed_dim=32,
        image=ViTConfig(
            image_px=48,
            patch_px=16,
            width=64,
            layers=2,
            heads=2,
            mlp_ratio=2.5,
            pooling="mean",
            activation="quick_gelu",
        ),
        text=replace(TEXT, activation="quick_gelu", context_length=32, mlp_ratio=3.0),
        pixels=PixelConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation="bilinear"),
    ),
    "vit, not square, with a bias": CLIPConfig(
        embed_dim=32,
        image=ViTConfig(image_px=(32, 64), patch_px=(16, 32), width=64, layers=1, heads=2),
        text=TEXT,
        init_logit_bias=-10.0,
    ),
    "vit of an odd ratio": CLIPConfig(
        embed_dim=32,
        image=ViTConfig(image_px=32, patch_px=16, width=448, layers=1, heads=7, mlp_ratio=1840 / 448),
        text=TEXT,
    ),
    "resnet": CLIPConfig(
        embed_dim=32, image=ResNetConfig(image_px=64, layers=(1, 1, 2, 1), width=16, heads=4), text=TEXT
    ),
}


def _bundle(config: CLIPConfig) -> Bundle:
    torch.manual_seed(0)
    tokenizer = ClipBPETokenizer(context_length=config.text.context_length)
    return Bundle(model=shaken(CLIP(config)), tokenizer=tokenizer)


def _photos(folder: Path) -> list[Path]:
    draw_photos(folder, ["a.png", "b.png", "c.jpg"])
    Image.effect_mandelbrot((70, 130), (-2, -1, 1, 1), 50).convert("RGB").save(folder / "d.png")
    return sorted(folder.iterdir())


def _cosines(image_emb: torch.Tensor, text_emb: torch.Tensor) -> np.ndarray[Any, Any]:
    return (torch.nn.functional.normalize(image_emb, dim=1) @ torch.nn.functional.normalize(text_emb, dim=1).T).numpy()


def _open_clip_cosines(name: str, photos: Sequence[Path], texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """open_clip's whole path: its model, its transform, its tokenizer."""
    model, preprocess = peers.open_clip.create_model_from_pretrained(name)
    tokens = peers.open_clip.get_tokenizer(name)(texts)
    with torch.no_grad():
        stacked = torch.stack([preprocess(Image.open(photo)) for photo in photos])
        return _cosines(model.eval().encode_image(stacked), model.encode_text(tokens))


def _hugging_face_cosines(folder: Path, photos: Sequence[Path], texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """transformers' whole path: its model and its processor."""
    model = peers.transformers.CLIPModel.from_pretrained(folder)
    processor = peers.transformers.CLIPProcessor.from_pretrained(folder, backend="pil")
    pictures = [Image.open(photo).convert("RGB") for photo in photos]
    inputs = processor(text=list(texts), images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**inputs)
    return _cosines(out.image_embeds, out.text_embeds)


@pytest.mark.parametrize("name", list(MODELS))
def test_open_clip_loads_what_is_exported(name: str, tmp_path: Path) -> None:
    bundle, photos = _bundle(MODELS[name]), _photos(tmp_path / "photos")
    export_bundle(bundle, "open-clip", tmp_path / "out")
    theirs = _open_clip_cosines(f"local-dir:{tmp_path / 'out'}", photos, TEXTS)
    ours = LoadedBundle(bundle).similarity(photos, TEXTS).cosine
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    model = peers.open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
    assert model.logit_scale.item() == bundle.model.log_logit_scale.item()
    assert (model.logit_bias is None) == (bundle.config.init_logit_bias is None)


@pytest.mark.parametrize("name", ["vit"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_tanh"])
def test_transformers_loads_what_is_exported(name: str, activation: str, tmp_path: Path) -> None:
    config = MODELS[name]
    config = replace(config, image=replace(config.image, activation=activation), text=replace(TEXT, mlp_ratio=2.6))  # type: ignore[arg-type]
    bundle, photos = _bundle(config), _photos(tmp_path / "photos")
    export_bundle(bundle, "hugging-face", tmp_path / "out")
    theirs = _hugging_face_cosines(tmp_path / "out", photos, TEXTS)
    ours = LoadedBundle(bundle).similarity(photos, TEXTS).cosine
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    tokens = (
        peers.transformers.CLIPProcessor.from_pretrained(tmp_path / "out", backend="pil").tokenizer(TEXTS).input_ids
    )
    encoded = bundle.tokenizer.encode(TEXTS)
    assert tokens == [row[:length].tolist() for row, length in zip(encoded.ids, encoded.lengths, strict=True)]


@pytest.mark.parametrize(("name", "to"), [("vit", "open-clip"), ("resnet", "open-clip"), ("vit", "hugging-face")])
def test_gradients_of_what_is_exported(name: str, to: Any, tmp_path: Path) -> None:
    bundle = _bundle(MODELS[name])
    export_bundle(bundle, to, tmp_path / "out")
    if to == "open-clip":
        theirs = peers.open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
        assert_parity(bundle.model, theirs, encode_open_clip, openai_names(bundle.config), min_spread=1e-4)
    else:
        theirs = peers.transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
        assert_parity(bundle.model, theirs, encode_hugging_face, hugging_face_names(bundle.config))


@pytest.mark.parametrize("to", ["open-clip", "hugging-face"])
def test_the_tokenizers_file_gives_the_ids(to: Any, tmp_path: Path) -> None:
    """`tokenizer.json`, as transformers.js and fastembed read it; with OpenAI's names of the marks for `CLIPTokenizer`."""
    bundle = _bundle(MODELS["vit"])
    export_bundle(bundle, to, tmp_path / "out")
    engine = Engine.from_file(str(tmp_path / "out" / "tokenizer.json"))
    engine.no_padding()
    encoded = bundle.tokenizer.encode(TEXTS)
    expected = [row[:length].tolist() for row, length in zip(encoded.ids, encoded.lengths, strict=True)]
    assert [encoding.ids for encoding in engine.encode_batch(TEXTS)] == expected
    marks = ("<|startoftext|>", "<|endoftext|>") if to == "hugging-face" else ("<start_of_text>", "<end_of_text>")
    assert [engine.token_to_id(mark) for mark in marks] == [49406, 49407]
    assert engine.encode(f"a dog {marks[1]}").ids == [49406, 320, 1929, 49407, 49407]


@pytest.mark.parametrize("to", ["open-clip", "hugging-face"])
def test_out_and_in_again_is_the_same_bundle(to: Any, tmp_path: Path) -> None:
    bundle = _bundle(MODELS["vit"])
    export_bundle(bundle, to, tmp_path / "out")
    again = open_bundle(tmp_path / "out")
    pixels = replace(bundle.config.pixels, crop_rounding="even" if to == "open-clip" else "down")
    text = bundle.config.own_text
    if to == "hugging-face":  # CLIPTokenizer parses OpenAI's names of the special tokens.
        text = replace(text, preparation=replace(text.preparation, special_names="openai"))
    assert again.config == replace(bundle.config, pixels=pixels, text=text)
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("preset", "to", "message"),
    [
        (
            "photos-small",
            "open-clip",
            "open_clip does not support its convolutional stem; .* `.*export BUNDLE --to onnx`",
        ),
        (
            "photos-convnet",
            "open-clip",
            "its convolutional network, its bidirectional text tower, its text tower's mean pool",
        ),
        (
            "photos-convnet",
            "hugging-face",
            "CLIPModel does not support its convolutional network, its bidirectional text",
        ),
        ("bert-vit-b-16", "open-clip", "its bidirectional text tower, its text tower's cls pooling"),
        (
            "vit-b-16-siglip",
            "open-clip",
            r"its image tower's gelu_tanh \(in SigLIP's layout and of this size, it has gelu\)",
        ),
        ("cifar10-rn", "hugging-face", "CLIPModel does not support its ResNet"),
        ("shapes-tiny", "hugging-face", "CLIPModel does not support its mean pooling; every model can be exported"),
    ],
)
def test_what_a_peer_has_no_place_for_is_refused_by_name(
    preset: str, to: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        model = CLIP(PRESETS[preset])
    with pytest.raises(ConfigError, match=message):
        export_bundle(Bundle(model=model, tokenizer=ClipBPETokenizer()), to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_open_clips_resnets_read_squares_alone(tmp_path: Path) -> None:
    image = ResNetConfig(image_px=(64, 96), layers=(1, 1, 1, 1), width=16, heads=4)
    with pytest.raises(ConfigError, match="does not support a ResNet on pictures that are not square"):
        export_bundle(_bundle(CLIPConfig(embed_dim=32, image=image, text=TEXT)), "open-clip", tmp_path / "out")


def test_an_export_goes_nowhere_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="already exists and is not empty"):
        export_bundle(_bundle(MODELS["vit"]), "open-clip", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("preset", ["vit-b-32", "rn50", "vit-l-14-336"])
def test_the_transform_of_a_preset_is_openais(preset: str, tmp_path: Path) -> None:
    """Their pixels, before the mean is gone, differ by at most 1/255."""
    config = PRESETS[preset]
    side = height_width(config.image.image_px)[0]
    preprocess = peers.open_clip.image_transform(side, is_train=False)
    std = torch.tensor(config.pixels.std).view(3, 1, 1)
    photos = _photos(tmp_path / "drawn") + _real_photos(10, required=False)
    for photo in photos:
        picture = Image.open(photo).convert("RGB")
        ours = torch.from_numpy(evaluation_pixels(picture, image_px=side, config=config.pixels))[None]
        error = (normalize(ours, config.pixels)[0] - preprocess(picture)).abs() * std
        assert float(error.max()) <= 1 / 255 + 1e-6


def _real_photos(num: int, *, required: bool = True) -> list[Path]:
    folder = Path(os.environ.get("DIPTYCH_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "photos"
    if not folder.is_dir() and required:
        pytest.skip(f"{folder} is not there; DIPTYCH_TEST_DATA names the folder with real photos")
    return sorted(folder.glob("*.jpg"))[:num]


PHOTO_TEXTS = ["a photo of a dog", "a red bicycle", "people in a street", "an aeroplane", "food on a plate"]


@pytest.mark.parametrize("vision", [{**VIT, "image_size": 224, "patch_size": 32}, {**RESNET, "image_size": 224}])
def test_ten_photos_through_open_clips_weights(vision: dict[str, Any], tmp_path: Path) -> None:
    """A bundle from a bare state dict gives the matrix that open_clip gives from the same weights."""
    photos, theirs = _real_photos(10), open_clip_model(vision)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    preprocess = peers.open_clip.image_transform(224, is_train=False)
    with torch.no_grad():
        stacked = torch.stack([preprocess(Image.open(photo)) for photo in photos])
        expected = _cosines(theirs.encode_image(stacked), theirs.encode_text(peers.open_clip.tokenize(PHOTO_TEXTS)))
    clip = LoadedBundle(open_bundle(tmp_path / "weights.pt", facts=WeightsFacts(activation="quick_gelu")))
    np.testing.assert_allclose(clip.similarity(photos, PHOTO_TEXTS).cosine, expected, atol=1e-5)
    assert expected.std() > 1e-4


def test_ten_photos_through_a_hugging_face_folder(tmp_path: Path) -> None:
    """A bundle from a folder of random weights gives the matrix that transformers gives from it."""
    photos = _real_photos(10)
    save_hugging_face(hugging_face_model(image_size=224, patch_size=32), tmp_path / "hf")
    clip = LoadedBundle(open_bundle(tmp_path / "hf"))
    ours = clip.similarity(photos, PHOTO_TEXTS).cosine
    export_bundle(require_bundle(clip.bundle), "hugging-face", tmp_path / "out")  # Theirs lacks the tokenizer's files.
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["model_type"] == "clip"
    np.testing.assert_allclose(ours, _hugging_face_cosines(tmp_path / "out", photos, PHOTO_TEXTS), atol=1e-5)
    assert ours.std() > 1e-4
