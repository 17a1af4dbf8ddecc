"""Data augmentation for training: random crop, horizontal flip, color changes and erasing.

The random parameters are drawn first, as `CropParams` and `ColorParams`, and applied afterwards by `training_pixels`.
Shapes: H and W are the height and width of the model's input.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageEnhance

from diptych.core.deprecation import renamed_names
from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.images.resize import resize
from diptych.images.transforms import PixelConfig, Pixels, ResizeMode, height_width

__getattr__ = renamed_names(__name__, {"random_view": "random_crop_params", "random_look": "random_color_params"})


@settings
class AugmentConfig:
    """Settings of the augmentation of images and captions. Everything but the crop is off by default."""

    crop_area: tuple[float, float] = (0.9, 1.0)
    """Minimum and maximum fraction of the image's area that a random crop covers (open_clip's default)."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Minimum and maximum aspect ratio (width over height) of the crop (torchvision's default)."""
    pad_px: int = 0
    """If above 0, shift the image by up to this many pixels of the model's input instead of cropping it, and fill with black
    (4 is usual for CIFAR). Meant for images with the aspect ratio of the model's input."""
    flip: float = 0.0
    """Probability of a horizontal flip. Images whose caption contains a word such as "left" are not flipped."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength x of brightness, contrast, saturation and hue jitter: a random factor within [1 - x, 1 + x], or for the hue a
    shift by up to x of the color circle (torchvision's `ColorJitter`; open_clip's `--color-jitter`)."""
    jitter_chance: float = 1.0
    """Probability of applying `jitter`."""
    grayscale: float = 0.0
    """Probability of converting the image to grayscale."""
    erase: float = 0.0
    """Probability of filling a rectangle of 2 to 33 % of the area with the mean color (Zhong et al. 2020)."""
    drop_words: float = 0.0
    """Probability of dropping each word of the caption; at least one word remains."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ConfigError(f"augment.crop_area is {self.crop_area}; it must be ascending within (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ConfigError(f"augment.crop_ratio is {self.crop_ratio}; it must be ascending and above 0")
        if self.pad_px < 0:
            raise ConfigError(f"augment.pad_px is {self.pad_px}; it must be at least 0")
        if not all(0 <= strength <= 1 for strength in self.jitter) or self.jitter[3] > 0.5:
            raise ConfigError(f"augment.jitter is {self.jitter}; each must lie within [0, 1], hue within [0, 0.5]")
        for name in ("flip", "jitter_chance", "grayscale", "erase", "drop_words"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; it must be a probability within [0, 1]")


class CropParams(NamedTuple):
    """A crop of an image, and whether it is flipped horizontally."""

    box: tuple[int, int, int, int]
    """(left, upper, right, lower) in pixels of the image; it may extend beyond the image."""
    flipped: bool


class ColorParams(NamedTuple):
    """Color changes and the erased rectangle of a crop."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """Shift on the color circle, within [-0.5, 0.5]."""
    is_gray: bool = False
    erased: tuple[int, int, int, int] | None = None
    """(left, upper, right, lower) of the erased rectangle, in pixels of the model's input."""

    def changes_colors(self) -> bool:
        """Return whether anything besides erasing changes the image."""
        return self._replace(erased=None) != ColorParams()


def random_crop_params(
    width: int,
    height: int,
    augment: AugmentConfig,
    generator: np.random.Generator,
    *,
    image_px: Pixels = 224,
    mode: ResizeMode = "crop",
) -> CropParams:
    """Draw a crop of random area, aspect ratio and position, as torchvision's `RandomResizedCrop`, or a shift (`pad_px`).

    A `crop_area` of (1, 1) disables random crops. For a model that squashes or pads its images, the whole image is then used,
    as in evaluation.

    >>> random_crop_params(64, 48, AugmentConfig(crop_area=(0.25, 0.5)), np.random.default_rng(0))
    CropParams(box=(0, 10, 27, 46), flipped=False)

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        augment: the settings.
        generator: source of randomness.
        image_px: size of the model's input; only used with `pad_px` and for padded images.
        mode: how images are fitted to the shape of the model's input (`PixelConfig.resize`).
    """
    flipped = bool(generator.random() < augment.flip)
    if augment.pad_px:
        rows, columns = height_width(image_px)
        right, down = generator.integers(-augment.pad_px, augment.pad_px, size=2, endpoint=True)
        left, upper = round(int(right) * width / columns), round(int(down) * height / rows)
        return CropParams((left, upper, left + width, upper + height), flipped)
    if augment.crop_area[0] == 1 and mode != "crop":
        return CropParams((0, 0, width, height) if mode == "squash" else _padded_box(width, height, image_px), flipped)
    low, high = (math.log(ratio) for ratio in augment.crop_ratio)
    for _ in range(10):
        area = (
            width * height * (augment.crop_area[0] + generator.random() * (augment.crop_area[1] - augment.crop_area[0]))
        )
        ratio = math.exp(low + generator.random() * (high - low))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(generator.random() * (width - crop_width + 1))
            upper = int(generator.random() * (height - crop_height + 1))
            return CropParams((left, upper, left + crop_width, upper + crop_height), flipped)
    side = min(width, height)  # The image is very long: take its center.
    left, upper = (width - side) // 2, (height - side) // 2
    return CropParams((left, upper, left + side, upper + side), flipped)


def _padded_box(width: int, height: int, image_px: Pixels) -> tuple[int, int, int, int]:
    """Return the smallest box around an image with the aspect ratio of the model's input."""
    rows, columns = height_width(image_px)
    scale = max(height / rows, width / columns)
    new_width, new_height = max(width, round(columns * scale)), max(height, round(rows * scale))
    left, upper = -((new_width - width) // 2), -((new_height - height) // 2)
    return (left, upper, left + new_width, upper + new_height)


def random_color_params(augment: AugmentConfig, generator: np.random.Generator, *, image_px: Pixels) -> ColorParams:
    """Draw color changes and an erased rectangle; with the default settings, nothing is changed."""
    factors = [1.0, 1.0, 1.0, 0.0]
    if any(augment.jitter) and generator.random() < augment.jitter_chance:
        for i, strength in enumerate(augment.jitter):
            factors[i] += (2 * generator.random() - 1) * strength
    is_gray = bool(augment.grayscale and generator.random() < augment.grayscale)
    erased = _random_patch(generator, image_px) if augment.erase and generator.random() < augment.erase else None
    brightness, contrast, saturation, hue = factors
    return ColorParams(brightness, contrast, saturation, hue, is_gray, erased)


def training_pixels(
    image: UInt8[ndarray, "H2 W2 3"],
    crop: CropParams,
    *,
    image_px: Pixels,
    config: PixelConfig,
    colors: ColorParams | None = None,
) -> UInt8[ndarray, "3 H W"]:
    """Crop and resize an image to the model's input, as torchvision's `resized_crop`, and apply the color changes.

    Pixels of the crop outside the image have the `pad_color` of the config, which is black by default.
    """
    height, width = height_width(image_px)
    pixels = resize(
        _crop(image, crop.box, config.pad_color), height, width, interpolation=config.interpolation
    )  # (3, H, W)
    if colors is not None and colors.changes_colors():
        pixels = _adjust_colors(pixels, colors)
    if crop.flipped:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    if colors is not None and colors.erased is not None:
        left, upper, right, lower = colors.erased
        pixels[:, upper:lower, left:right] = np.round(255 * np.array(config.mean)).astype(np.uint8)[:, None, None]
    return pixels


def _crop(
    image: UInt8[ndarray, "H2 W2 3"], box: tuple[int, int, int, int], pad_color: tuple[int, int, int]
) -> UInt8[ndarray, "H3 W3 3"]:
    left, upper, right, lower = box
    height, width = image.shape[:2]
    inside = image[max(upper, 0) : lower, max(left, 0) : right]
    if left >= 0 and upper >= 0 and right <= width and lower <= height:
        return inside
    canvas = np.full((lower - upper, right - left, 3), pad_color, dtype=np.uint8)
    top, start = max(-upper, 0), max(-left, 0)
    canvas[top : top + inside.shape[0], start : start + inside.shape[1]] = inside
    return canvas


def _adjust_colors(pixels: UInt8[ndarray, "3 H W"], colors: ColorParams) -> UInt8[ndarray, "3 H W"]:
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    changes = (
        (ImageEnhance.Brightness, colors.brightness),
        (ImageEnhance.Contrast, colors.contrast),
        (ImageEnhance.Color, colors.saturation),
    )
    for enhance, factor in changes:
        if factor != 1:
            image = enhance(image).enhance(factor)
    if colors.hue:
        hsv = np.array(image.convert("HSV"))
        hsv[..., 0] += np.uint8(round(colors.hue * 255) % 256)  # Bytes wrap around, as the color circle does.
        image = Image.fromarray(hsv, "HSV").convert("RGB")
    image = image.convert("L").convert("RGB") if colors.is_gray else image
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _random_patch(generator: np.random.Generator, image_px: Pixels) -> tuple[int, int, int, int]:
    height, width = height_width(image_px)
    area = height * width * (0.02 + generator.random() * (0.33 - 0.02))
    ratio = math.exp(math.log(0.3) + generator.random() * (math.log(3.3) - math.log(0.3)))
    patch_width = min(width, max(1, round(math.sqrt(area * ratio))))
    patch_height = min(height, max(1, round(math.sqrt(area / ratio))))
    left, upper = generator.integers(width - patch_width + 1), generator.integers(height - patch_height + 1)
    return int(left), int(upper), int(left) + patch_width, int(upper) + patch_height
