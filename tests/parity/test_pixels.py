"""The evaluation transform is the peers', bit for bit: open_clip's, timm's, and Hugging Face's with Pillow."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diptych.bundle.processor import processor_pixels
from diptych.images.transforms import PixelConfig, Pixels, ResizeMode, evaluation_pixels, height_width
from tests import peers

SIZES = [(64, 48), (48, 65), (33, 100), (101, 33), (32, 32), (450, 449), (1, 1), (2, 1), (5, 150), (150, 7)]
INPUTS: list[Pixels] = [32, 37, (32, 64), (48, 30)]


def _noise(width: int, height: int) -> Image.Image:
    """Black and white in half of the picture, where the filters overshoot."""
    noise = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[: height // 2] = np.where(noise[: height // 2] > 127, 255, 0)
    return Image.fromarray(noise)


def _levels(transform: Any, image: Image.Image) -> NDArray[np.uint8]:
    """The peer's pixels before they are normalized."""
    values: NDArray[np.float32] = transform(image).numpy()
    levels = values * 255
    assert np.abs(levels - levels.round()).max() < 1e-3
    return levels.round().astype(np.uint8)


PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("image_px", INPUTS)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("mode", "theirs"), [("crop", "shortest"), ("squash", "squash"), ("pad", "longest")])
def test_pixels_are_open_clips(image_px: Pixels, interpolation: Any, mode: ResizeMode, theirs: str) -> None:
    if mode == "crop" and interpolation == "bilinear" and not isinstance(image_px, int):
        interpolation = "bicubic"  # open_clip does not pass its filter on for a rectangle.
    fill = {"fill_color": 77} if mode == "pad" else {}
    transform = peers.open_clip.transform.image_transform(
        image_px, is_train=False, resize_mode=theirs, interpolation=interpolation, **PLAIN, **fill
    )
    config = PixelConfig(resize=mode, interpolation=interpolation, pad_color=(77, 77, 77))
    for size in SIZES:
        if mode == "pad" and _vanishes(size, image_px):
            continue
        image = _noise(*size)
        assert np.array_equal(evaluation_pixels(image, image_px=image_px, config=config), _levels(transform, image))


def _vanishes(size: tuple[int, int], image_px: Pixels) -> bool:
    """Whether the peer rounds a side of the resized picture to 0, and fails."""
    height, width = height_width(image_px)
    ratio = max(size[1] / height, size[0] / width)
    return round(min(size) / ratio) == 0


@pytest.mark.parametrize(
    ("image_px", "share"), [*((px, 1.0) for px in INPUTS), (32, 0.9), (37, 0.875), ((32, 64), 0.5), ((48, 30), 0.75)]
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(("mode", "theirs"), [("crop", "center"), ("squash", "squash"), ("pad", "border")])
def test_pixels_are_timms(image_px: Pixels, interpolation: Any, mode: ResizeMode, theirs: str, share: float) -> None:
    """`crop_pct` below 1 resizes to a larger size than the input. timm rounds the two sides of a rectangle on their own."""
    height, width = height_width(image_px)
    mean = (0.4, 0.5, 0.6)
    transform = peers.timm.data.create_transform(
        (3, height, width), crop_pct=share, crop_mode=theirs, interpolation=interpolation, mean=mean, std=(1, 1, 1)
    )
    fill = (102, 128, 153)  # 255 times the mean.
    resize_px = None if share == 1 else int(min(height, width) / share)
    config = PixelConfig(resize=mode, interpolation=interpolation, resize_px=resize_px, pad_color=fill)
    for size in SIZES:
        if mode == "pad" and _vanishes(size, image_px):
            continue
        image = _noise(*size)
        found = evaluation_pixels(image, image_px=image_px, config=config)
        values = transform(image).numpy() + np.array(mean, dtype=np.float32)[:, None, None]
        assert np.array_equal(found, (values * 255).round().astype(np.uint8)), size


PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIP": {"size": {"shortest_edge": 32}, "crop_size": 32},
    "CLIP, larger than the crop": {"size": {"shortest_edge": 41}, "crop_size": {"height": 32, "width": 32}},
    "CLIP, squashed": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    "CLIP, squashed and cropped": {"size": {"height": 40, "width": 40}, "crop_size": 32},
    "CLIP, Lanczos": {"size": {"shortest_edge": 32}, "crop_size": 32, "resample": 1},
    "CLIP, bilinear": {"size": {"shortest_edge": 35}, "crop_size": 32, "resample": 2},
    "CLIP, not normalized": {"size": {"shortest_edge": 32}, "crop_size": 32, "do_normalize": False},
    "CLIP, to [-1, 1] at once": {
        **{"size": {"shortest_edge": 32}, "crop_size": 32, "rescale_factor": 1 / 127.5},
        **{"image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    },
    "CLIP, in levels": {
        **{"size": {"shortest_edge": 32}, "crop_size": 32, "do_rescale": False},
        **{"image_mean": [120.0, 118.0, 110.0], "image_std": [60.0, 61.0, 62.0]},
    },
    "Siglip": {"size": {"height": 32, "width": 32}},
    "Siglip, Lanczos": {"size": {"height": 32, "width": 32}, "resample": 1},
    "ViT": {"size": {"height": 32, "width": 32}},
}


@pytest.mark.parametrize("name", list(PROCESSORS))
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_pixels_are_those_of_hugging_faces_processors(name: str, backend: str) -> None:
    """Of Pillow's processors bit for bit, of torchvision's within 2 of 255 levels for smooth pictures."""
    kind, settings = name.partition(",")[0], PROCESSORS[name]
    ending = "Pil" if backend == "pil" else ""
    processor = getattr(peers.transformers, f"{kind}ImageProcessor{ending}")(**settings)
    config = processor_pixels(processor.to_dict(), 32, what="it")
    mean, std = (np.array(values)[:, None, None] for values in (config.mean, config.std))
    for size in SIZES:
        image = _noise(*size)
        if backend == "torchvision":
            image = image.resize((max(1, size[0] // 8), max(1, size[1] // 8))).resize(size)
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        pixels = evaluation_pixels(image, image_px=32, config=config)
        levels = (theirs * std + mean) * 255
        if backend == "pil":
            assert np.abs(levels - levels.round()).max() < 1e-3
            assert np.array_equal(levels.round().astype(np.uint8), pixels), size
        else:
            assert np.abs(levels - pixels).max() <= 2.01, size
