"""The lines of the example program give the pixels of the image transform."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.export.example_pixels import transform_lines
from diptych.images.resample import FILTERS
from diptych.images.transforms import PixelConfig, Pixels, evaluation_pixels, height_width
from diptych.models.config import CLIPConfig
from tests.export.makers import VIT

CONFIGS = [
    PixelConfig(),
    PixelConfig(crop_rounding="down"),
    PixelConfig(resize_px=40, interpolation="lanczos"),
    PixelConfig(resize="squash", interpolation="bilinear"),
    PixelConfig(resize="squash", resize_px=50),
    PixelConfig(resize="pad", pad_color=(9, 8, 7)),
    PixelConfig(resize="pad", resize_px=45, pad_color=(9, 8, 7)),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("image_px", [32, (32, 48)])
def test_the_lines_give_the_pixels_of_the_transform(config: PixelConfig, image_px: Pixels) -> None:
    lines = transform_lines(CLIPConfig(image=replace(VIT, image_px=image_px), pixels=config))
    height, width = height_width(image_px)
    for size in [(64, 48), (33, 101), (32, 32), (1, 1), (200, 31), (7, 90)]:
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        scope: dict[str, Any] = {
            **{"image": Image.fromarray(noise), "Image": Image, "height": height, "width": width},
            "TRANSFORM": {"resample": int(FILTERS[config.interpolation])},
        }
        exec(lines.replace("\n    ", "\n"), scope)
        expected = evaluation_pixels(Image.fromarray(noise), image_px=image_px, config=config)
        assert np.array_equal(np.asarray(scope["image"]).transpose(2, 0, 1), expected), (size, lines)
