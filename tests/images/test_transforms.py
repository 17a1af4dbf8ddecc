import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from diptych.core.errors import ConfigError
from diptych.images.augment import (
    AugmentConfig,
    ColorParams,
    CropParams,
    random_color_params,
    random_crop_params,
    training_pixels,
)
from diptych.images.resample import FILTERS, Interpolation
from diptych.images.resize import resize
from diptych.images.tensors import normalize, shrink
from diptych.images.transforms import (
    OPENAI_MEAN,
    OPENAI_STD,
    PixelConfig,
    Pixels,
    evaluation_pixels,
    height_width,
)


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 100), (32, 32), (20, 30), (7, 300)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_pixels_equal_a_plain_reference(size: tuple[int, int], interpolation: str) -> None:
    """torchvision's Resize(32) and CenterCrop(32): long side truncated, offset rounded."""
    image = _noise(*size)
    width, height = size
    new = (32, int(32 * height / width)) if width <= height else (int(32 * width / height), 32)
    resized = np.asarray(image.resize(new, getattr(Image.Resampling, interpolation.upper())))
    top, left = round((new[1] - 32) / 2), round((new[0] - 32) / 2)
    expected = resized[top : top + 32, left : left + 32].transpose(2, 0, 1)
    config = PixelConfig(interpolation=interpolation)  # type: ignore[arg-type]
    assert np.array_equal(evaluation_pixels(image, image_px=32, config=config), expected)


def whole_resize_then_crop(image: Image.Image, image_px: Pixels, config: PixelConfig) -> NDArray[np.uint8]:
    """The transform as OpenAI and open_clip write it."""
    height, width = height_width(image_px)
    ratio = min(image.height / height, image.width / width)
    if height != width:
        size = (round(image.width / ratio), round(image.height / ratio))
    elif image.width <= image.height:
        size = (width, width * image.height // image.width)
    else:
        size = (height * image.width // image.height, height)
    resized = image.resize(size, FILTERS[config.interpolation])
    rounded = round if config.crop_rounding == "even" else math.floor
    left, upper = rounded((size[0] - width) / 2), rounded((size[1] - height) / 2)
    return np.asarray(resized.crop((left, upper, left + width, upper + height))).transpose(2, 0, 1)


EXTREME = [(10, 2000), (2000, 10), (1, 300), (300, 1), (3, 500), (1, 1), (2, 2)]
ORDINARY = [(64, 48), (48, 64), (33, 100), (100, 33), (32, 32), (450, 449), (672, 224), (20, 30)]


@pytest.mark.parametrize("size", [*EXTREME, *ORDINARY])
@pytest.mark.parametrize("image_px", [32, 224, (64, 256), (224, 112)])
def test_cropping_first_gives_the_pixels_of_the_whole_resize(size: tuple[int, int], image_px: Pixels) -> None:
    """Noise of black and white: the filters overshoot everywhere, so that the order of the two passes shows."""
    rng = np.random.default_rng(0)
    gray = (rng.integers(0, 2, (size[1], size[0], 1), dtype=np.uint8) * 255).repeat(3, axis=2)
    configs = [
        PixelConfig(interpolation="bicubic"),
        PixelConfig(interpolation="bicubic", crop_rounding="down"),
        PixelConfig(interpolation="bilinear"),
        PixelConfig(interpolation="lanczos"),
    ]
    for pixels in (gray, rng.integers(0, 256, gray.shape, dtype=np.uint8)):
        image = Image.fromarray(pixels)
        for config in configs:
            found = evaluation_pixels(image, image_px=image_px, config=config)
            expected = whole_resize_then_crop(image, image_px, config)
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [(1, 600_000), (600_000, 1)])
@pytest.mark.parametrize(
    "config",
    [
        PixelConfig(),
        PixelConfig(interpolation="lanczos", resize_px=300),
        PixelConfig(resize="squash"),
        PixelConfig(resize="squash", resize_px=16_384),
        PixelConfig(resize="pad", resize_px=16_384, pad_color=(1, 2, 3)),
        PixelConfig(resize="pad", pad_color=(1, 2, 3)),
    ],
)
def test_memory_does_not_grow_with_the_aspect_ratio(size: tuple[int, int], config: PixelConfig) -> None:
    """Resized as a whole, the picture would have 30 billion pixels."""
    image = Image.new("RGB", size, (1, 2, 3))
    tracemalloc.start()
    found = evaluation_pixels(image, image_px=224, config=config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert np.array_equal(found, np.broadcast_to(np.array([1, 2, 3], np.uint8)[:, None, None], (3, 224, 224)))


@pytest.mark.parametrize("size", [(64, 48), (48, 65), (1, 1), (1, 90), (90, 1), (32, 32)])
def test_squash_keeps_the_whole_picture(size: tuple[int, int]) -> None:
    found = evaluation_pixels(_noise(*size), image_px=(32, 48), config=PixelConfig(resize="squash"))
    expected = np.asarray(_noise(*size).resize((48, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(found, expected)


def test_pad_adds_borders_of_the_color() -> None:
    config = PixelConfig(resize="pad", pad_color=(9, 8, 7))
    found = evaluation_pixels(_noise(64, 30), image_px=32, config=config)
    assert (found[:, :8] == np.array([9, 8, 7])[:, None, None]).all()
    assert (found[:, 23:] == np.array([9, 8, 7])[:, None, None]).all()
    expected = np.asarray(_noise(64, 30).resize((32, 15), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(found[:, 8:23], expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resize_px": 0}, r"model\.pixels\.resize_px is 0"),
        ({"resize_px": 10**6}, r"model\.pixels\.resize_px is 1000000"),
        ({"pad_color": (0, 0, 256)}, r"model\.pixels\.pad_color is \(0, 0, 256\)"),
    ],
)
def test_impossible_transforms_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PixelConfig(**wrong)


@pytest.mark.parametrize("size", [(64, 48), (48, 65), (1, 90), (32, 32)])
@pytest.mark.parametrize("config", [PixelConfig(resize="squash"), PixelConfig(resize="pad", pad_color=(5, 6, 7))])
def test_training_without_random_crops_sees_the_pixels_of_the_evaluation(
    size: tuple[int, int], config: PixelConfig
) -> None:
    image = _noise(*size).resize((8, 8)).resize(size)
    crop = random_crop_params(
        *size, AugmentConfig(crop_area=(1, 1)), np.random.default_rng(0), image_px=16, mode=config.resize
    )
    found = training_pixels(np.asarray(image), crop, image_px=16, config=config)
    expected = evaluation_pixels(image, image_px=16, config=config)
    near_the_border = np.abs(found.astype(int) - expected).max(axis=0)
    assert np.median(near_the_border) <= 2
    if config.resize == "squash":
        assert near_the_border.max() <= 2


def test_random_crops_do_not_depend_on_the_mode() -> None:
    crops = [
        random_crop_params(64, 48, AugmentConfig(), np.random.default_rng(3), image_px=16, mode=mode)
        for mode in ("crop", "squash", "pad")
    ]
    assert len(set(crops)) == 1


def test_flip_mirrors_the_same_crop() -> None:
    image, config = np.asarray(_noise(50, 40)), PixelConfig()
    plain = training_pixels(image, CropParams((3, 5, 43, 35), False), image_px=24, config=config)
    flipped = training_pixels(image, CropParams((3, 5, 43, 35), True), image_px=24, config=config)
    assert np.array_equal(flipped, plain[:, :, ::-1])
    assert not np.array_equal(flipped, plain)


def test_training_pixels_are_of_the_box_alone() -> None:
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[10:30, 10:30] = 255
    inside = training_pixels(image, CropParams((10, 10, 30, 30), False), image_px=8, config=PixelConfig())
    assert inside.min() == 255


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    target=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    interpolation=st.sampled_from(list(FILTERS)),
    smooth=st.booleans(),
)
def test_training_pixels_are_pillows_within_two(
    size: tuple[int, int], target: tuple[int, int], interpolation: Interpolation, smooth: bool
) -> None:
    """Also of noise, black and white: there the filter overshoots at every pixel."""
    image = _noise(*size)
    image = image.resize((size[0] // 2 + 1, size[1])).resize(size) if smooth else image.point(lambda x: 255 * (x > 127))
    expected = np.asarray(image.resize(target[::-1], getattr(Image.Resampling, interpolation.upper())))
    pixels = resize(np.asarray(image), *target, interpolation=interpolation)
    assert np.abs(pixels.transpose(1, 2, 0).astype(int) - expected).max() <= 2


@given(
    width=st.integers(1, 600),
    height=st.integers(1, 600),
    low=st.floats(0.05, 1),
    ratio=st.floats(0.3, 1),
    seed=st.integers(0, 99),
)
def test_random_crop_params_stays_inside_the_picture(
    width: int, height: int, low: float, ratio: float, seed: int
) -> None:
    augment = AugmentConfig(crop_area=(low, 1.0), crop_ratio=(ratio, 1 / ratio))
    left, upper, right, lower = random_crop_params(width, height, augment, np.random.default_rng(seed)).box
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


def test_random_crop_params_keeps_the_area_it_was_told() -> None:
    augment = AugmentConfig(crop_area=(0.25, 0.5), crop_ratio=(0.8, 1.25))
    generator = np.random.default_rng(0)
    views = [random_crop_params(400, 400, augment, generator) for _ in range(300)]
    areas = np.array([(r - x) * (b - y) / 400**2 for (x, y, r, b), _ in views])
    assert 0.245 < areas.min() < 0.3
    assert 0.45 < areas.max() < 0.505
    assert len({view.box[0] for view in views}) > 50


def test_whole_picture_without_augmentation() -> None:
    augment = AugmentConfig(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert random_crop_params(64, 64, augment, np.random.default_rng(0)) == CropParams((0, 0, 64, 64), False)


def test_flip_happens_as_often_as_it_is_told() -> None:
    generator = np.random.default_rng(0)
    share = np.mean([random_crop_params(9, 9, AugmentConfig(flip=0.3), generator).flipped for _ in range(2000)])
    assert 0.26 < share < 0.34


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.9, 0.5)},
        {"crop_area": (0.5, 1.1)},
        {"crop_ratio": (0.0, 1.0)},
        {"flip": 1.5},
        {"erase": -0.1},
        {"pad_px": -1},
        {"jitter": (0.1, 0.1, 0.1, 0.6)},
    ],
)
def test_impossible_augmentation_is_refused(wrong: dict[str, tuple[float, float] | float]) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.{next(iter(wrong))} is"):
        AugmentConfig(**wrong)  # type: ignore[arg-type]


def test_a_shift_moves_the_whole_picture_and_leaves_black() -> None:
    image, config, augment = np.asarray(_noise(32, 32)), PixelConfig(), AugmentConfig(pad_px=4)
    views = {random_crop_params(32, 32, augment, np.random.default_rng(seed), image_px=32).box for seed in range(400)}
    assert {box[0] for box in views} == {box[1] for box in views} == set(range(-4, 5))
    assert {(right - left, lower - upper) for left, upper, right, lower in views} == {(32, 32)}
    pixels = training_pixels(image, CropParams((-4, 3, 28, 35), False), image_px=32, config=config)
    plain = image.transpose(2, 0, 1)
    assert np.array_equal(pixels[:, :29, 4:], plain[:, 3:, :28])
    assert pixels[:, 29:].max() == pixels[:, :, :4].max() == 0


def test_nothing_is_recoloured_by_default_and_no_number_drawn() -> None:
    generator = np.random.default_rng(0)
    assert random_color_params(AugmentConfig(), generator, image_px=32) == ColorParams()
    assert generator.random() == np.random.default_rng(0).random()


def test_looks_are_as_wide_as_they_are_told() -> None:
    augment = AugmentConfig(jitter=(0.4, 0.3, 0.2, 0.1), jitter_chance=0.5, grayscale=0.3, erase=0.25)
    generator = np.random.default_rng(0)
    looks = [random_color_params(augment, generator, image_px=(32, 64)) for _ in range(2000)]
    for i, strength in enumerate(augment.jitter):
        values = np.array([look[i] for look in looks]) - (1.0 if i < 3 else 0.0)
        assert -strength <= values.min() < -0.95 * strength
        assert 0.95 * strength < values.max() <= strength
        assert 0.45 < np.mean(values == 0) < 0.55
    assert 0.26 < np.mean([look.is_gray for look in looks]) < 0.34
    boxes = [look.erased for look in looks if look.erased is not None]
    assert 0.21 < len(boxes) / len(looks) < 0.29
    areas = np.array([(right - left) * (lower - upper) / (32 * 64) for left, upper, right, lower in boxes])
    assert 0.01 < areas.min() < 0.05
    assert 0.25 < areas.max() < 0.36
    assert all(0 <= x < r <= 64 and 0 <= y < b <= 32 for x, y, r, b in boxes)


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (ColorParams(), (200, 100, 50)),
        (ColorParams(brightness=0.5), (100, 50, 25)),
        (ColorParams(is_gray=True), (124, 124, 124)),
        (ColorParams(saturation=0.0), (124, 124, 124)),
        (ColorParams(hue=1 / 3), (50, 200, 100)),
        (ColorParams(contrast=0.5), (162, 112, 87)),
    ],
)
def test_colours_change_as_they_are_told(look: ColorParams, expected: tuple[int, int, int]) -> None:
    image = np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)
    pixels = training_pixels(image, CropParams((0, 0, 8, 8), False), image_px=8, config=PixelConfig(), colors=look)
    assert np.abs(pixels[:, 3, 3].astype(int) - expected).max() <= 2


def test_what_is_erased_is_the_mean_colour_and_nothing_else() -> None:
    image, config = np.asarray(_noise(16, 16)), PixelConfig(mean=(0.2, 0.4, 0.6))
    view = CropParams((0, 0, 16, 16), True)
    plain = training_pixels(image, view, image_px=16, config=config)
    erased = training_pixels(image, view, image_px=16, config=config, colors=ColorParams(erased=(2, 3, 9, 11)))
    assert (erased[:, 3:11, 2:9] == np.array([51, 102, 153])[:, None, None]).all()
    plain[:, 3:11, 2:9] = erased[:, 3:11, 2:9]
    assert np.array_equal(plain, erased)


def test_normalize_takes_each_channel_by_its_own() -> None:
    pixels = torch.arange(0, 240, 10, dtype=torch.uint8).view(1, 3, 2, 4)
    out = normalize(pixels, PixelConfig())
    for channel in range(3):
        expected = (pixels[0, channel].double() / 255 - OPENAI_MEAN[channel]) / OPENAI_STD[channel]
        torch.testing.assert_close(out[0, channel].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", list(FILTERS))
def test_a_batch_is_shrunk_as_pillow_shrinks_a_picture(interpolation: Interpolation) -> None:
    picture = np.asarray(_noise(96, 96))
    batch = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
    small = shrink(batch, 40, config=PixelConfig(interpolation=interpolation))
    expected = np.asarray(Image.fromarray(picture).resize((40, 40), FILTERS[interpolation])).transpose(2, 0, 1)
    assert small.dtype == torch.uint8
    assert np.abs(small[0].numpy().astype(int) - expected).max() <= 2
