"""The heat lies on what was named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diptych.bundle.folder import Bundle, require_bundle
from diptych.cli.main import main
from diptych.core.errors import DiptychError
from diptych.core.settings import override
from diptych.images.transforms import PixelConfig
from diptych.inference import load_model
from diptych.inference.embedder import Embedder
from diptych.inference.explain import explain
from diptych.inference.loaded import InferencePrecision, LoadedBundle, load
from diptych.models.clip import CLIP
from diptych.models.config import ConvNetConfig, ResNetConfig, ViTConfig
from diptych.tokenizers.hashing import HashingTokenizer
from diptych.training.run import train
from tests.conftest import TINY_MODEL, TINY_RUN

SIDE = 32
NAMES = {
    "red circle": (230, 30, 30),
    "blue square": (30, 60, 230),
    "green circle": (30, 190, 60),
    "yellow square": (235, 215, 30),
}


def _draw(image: Image.Image, name: str, x: int, y: int) -> None:
    draw, box = ImageDraw.Draw(image), (x, y, x + 10, y + 10)
    (draw.ellipse if "circle" in name else draw.rectangle)(box, fill=NAMES[name])


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    """A model that was trained to name one thing in a grey picture."""
    folder = tmp_path_factory.mktemp("things")
    generator, rows = np.random.default_rng(0), []
    for number in range(400):
        name = list(NAMES)[number % 4]
        image = Image.new("RGB", (SIDE, SIDE), (int(generator.integers(100, 160)),) * 3)
        _draw(image, name, *generator.integers(0, SIDE - 10, 2).tolist())
        image.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"a {name}"})
    (folder / "all.json").write_text(json.dumps(rows), encoding="utf-8")
    run = override(
        replace(
            TINY_RUN,
            model=replace(
                TINY_MODEL, image=ViTConfig(image_px=SIDE, patch_px=8, width=32, layers=2, heads=4, pooling="mean")
            ),
        ),
        {
            "data.source": f"json:{folder / 'all.json'}",
            "data.positives": "caption",
            "augment.crop_area": "[1.0, 1.0]",
            "schedule.steps": "160",
            "batch_size": "32",
            "optimizer.lr": "3e-3",
        },
    )
    train(run, folder / "run")
    return load(folder / "run" / "bundle", device="cpu")


def _centre(heat: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    """Of gravity, from left (0) to right (1)."""
    return float((heat.sum(axis=0) * np.linspace(0, 1, heat.shape[1])).sum() / heat.sum())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_heat_lies_on_what_was_named(
    seeing: LoadedBundle, precision: InferencePrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_model, "cpu_has", lambda *_: True)
    monkeypatch.setattr(load_model, "has_fast_int8", lambda: True)
    assert seeing.path is not None
    embedder = load(seeing.path, device="cpu", precision=precision).embedder
    right, apart = 0, list[float]()
    for y in (2, 11, 20):
        for left, other in (
            ("red circle", "blue square"),
            ("blue square", "red circle"),
            ("green circle", "yellow square"),
        ):
            image = Image.new("RGB", (SIDE, SIDE), (130, 130, 130))
            _draw(image, left, 2, y)
            _draw(image, other, 20, 20 - y // 2)
            found = explain(embedder, image, [f"a {left}", f"a {other}"])
            assert found.heat.shape == (2, SIDE, SIDE)
            assert found.heat.min() == 0
            assert found.heat.max() == 1
            own, others = _centre(found.heat[0]), _centre(found.heat[1])
            right += own < 0.5 < others
            apart.append(others - own)
    assert min(apart) > 0.1
    assert right >= 8


@pytest.mark.parametrize(
    "image",
    [
        ViTConfig(image_px=32, patch_px=8, width=16, layers=2, heads=2, pooling="mean"),
        ViTConfig(image_px=(32, 48), patch_px=16, width=16, layers=2, heads=2, pooling="attention"),
        ViTConfig(image_px=32, patch_px=8, width=16, layers=1, heads=2, stem="conv"),
        ResNetConfig(image_px=64, layers=(1, 1, 1, 1), width=8, heads=4),
        ConvNetConfig(image_px=64, widths=(8, 16), layers=(1, 1)),
    ],
)
def test_every_tower_can_be_explained(image: ViTConfig | ResNetConfig | ConvNetConfig) -> None:
    torch.manual_seed(0)
    config = replace(TINY_MODEL, image=image, text=replace(TINY_MODEL.text, tokenizer="hashing"))
    bundle = Bundle(model=CLIP(config).eval(), tokenizer=HashingTokenizer(vocab_size=300, context_length=24))
    embedder, picture = Embedder(bundle), np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    before = embedder.encode_images([picture])
    found = explain(embedder, picture, ["a", "b", "c"])
    np.testing.assert_allclose(found.cosine, before[0] @ embedder.encode_texts(["a", "b", "c"]).T, atol=1e-5)
    assert np.isfinite(found.heat).all()
    np.testing.assert_array_equal(embedder.encode_images([picture]), before)  # Nobody watches any more.
    with pytest.raises(DiptychError, match="no text"):
        explain(embedder, picture, [])


def test_a_map_covers_the_pixels_that_no_patch_covers() -> None:
    torch.manual_seed(0)
    image = ViTConfig(image_px=(35, 38), patch_px=8, width=16, layers=2, heads=2, pooling="attention", layout="siglip")
    text = replace(TINY_MODEL.text, tokenizer="hashing")
    config = replace(TINY_MODEL, embed_dim=16, image=image, text=text, pixels=PixelConfig(resize="squash"))
    bundle = Bundle(model=CLIP(config).eval(), tokenizer=HashingTokenizer(vocab_size=300, context_length=24))
    picture = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    found = explain(Embedder(bundle), picture, ["a", "b"])
    assert found.heat.shape == (2, 35, 38)
    assert found.picture.shape == (35, 38, 3)
    np.testing.assert_array_equal(found.heat[:, 32:, :32], np.repeat(found.heat[:, 31:32, :32], 3, axis=1))
    np.testing.assert_array_equal(found.heat[:, :, 32:], np.repeat(found.heat[:, :, 31:32], 6, axis=2))


def test_a_lower_precision_is_explained_in_float32(seeing: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map is that of a float32 model with the same, rounded weights."""
    monkeypatch.setattr(load_model, "cpu_has", lambda *_: True)
    assert seeing.path is not None
    half, rounded = (load(seeing.path, device="cpu", precision=kind) for kind in ("bf16", "fp32"))
    require_bundle(rounded.bundle).model.image_tower.load_state_dict(
        require_bundle(half.bundle).model.image_tower.state_dict()
    )
    require_bundle(rounded.bundle).model.text_tower = require_bundle(half.bundle).model.text_tower
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    texts = ["a red circle", "a blue square"]
    found, expected = (explain(clip.embedder, picture, texts) for clip in (half, rounded))
    np.testing.assert_array_equal(found.heat, expected.heat)
    np.testing.assert_array_equal(found.cosine, expected.cosine)
    assert {weight.dtype for weight in require_bundle(half.bundle).model.image_tower.parameters()} == {
        torch.bfloat16,
        torch.float32,
    }


def test_a_frozen_model_can_be_explained(seeing: LoadedBundle) -> None:
    assert seeing.path is not None
    frozen = load(seeing.path, device="cpu")
    require_bundle(frozen.bundle).model.requires_grad_(False)
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    found, expected = (explain(clip.embedder, picture, ["a red circle"]) for clip in (frozen, seeing))
    np.testing.assert_array_equal(found.heat, expected.heat)


def test_the_command(seeing: LoadedBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = tmp_path / "two.png", tmp_path / "heat.png"
    Image.new("RGB", (50, 40), (200, 0, 0)).save(image)
    assert main(["explain", str(seeing.path), str(image), "a red circle", "a blue square", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as heat:
        assert heat.width > 600
    assert main(["explain", str(seeing.path), str(image), "x", "--out", str(tmp_path / "no" / "heat.png")]) == 2
