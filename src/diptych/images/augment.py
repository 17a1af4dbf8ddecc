"""What training does to pictures: another crop, mirrored or not, in other colours, each time they are seen.

What is drawn is drawn first, from one generator, and applied afterwards; so a picture's view is a value that tests can give.
Shapes: H W pixels of the model's size.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageEnhance

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.images.resize import resize
from diptych.images.transforms import PixelConfig, Pixels, height_width


@settings
class AugmentConfig:
    """What training does to a picture and its caption. All but the crop is off unless asked for."""

    crop_area: tuple[float, float] = (0.9, 1.0)
    """Share of the picture's area that a random crop keeps, from and to (open_clip's default)."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Width over height of the crop, from and to (torchvision's default)."""
    pad_px: int = 0
    """In place of the crop: shift the whole picture by up to so many pixels of the model's size, black where it is gone (4 for
    CIFAR). Meant for pictures of the model's own proportions."""
    flip: float = 0.0
    """Chance of a mirror image. Where it happens, "left" and "right" change places in the caption."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Brightness, contrast, saturation, hue: each changes by a random factor within 1 - x and 1 + x, hue by up to x of the
    circle (torchvision's `ColorJitter`; open_clip's `--color-jitter`)."""
    jitter_chance: float = 1.0
    """Chance that `jitter` happens at all."""
    grayscale: float = 0.0
    """Chance of a picture without colours."""
    erase: float = 0.0
    """Chance that a rectangle of 2 to 33 % of the area is painted over with the mean colour (Zhong et al. 2020)."""
    drop_words: float = 0.0
    """Chance of each word of the caption to be left out; at least one stays."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ConfigError(f"augment.crop_area is {self.crop_area}; it must rise within (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ConfigError(f"augment.crop_ratio is {self.crop_ratio}; it must rise from above 0")
        if self.pad_px < 0:
            raise ConfigError(f"augment.pad_px is {self.pad_px}; it must be at least 0")
        if not all(0 <= strength <= 1 for strength in self.jitter) or self.jitter[3] > 0.5:
            raise ConfigError(f"augment.jitter is {self.jitter}; each must lie within [0, 1], hue within [0, 0.5]")
        for name in ("flip", "jitter_chance", "grayscale", "erase", "drop_words"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}; it is a chance, within [0, 1]")


class CropParams(NamedTuple):
    """Which part of a picture a training step sees."""

    box: tuple[int, int, int, int]
    """Left, upper, right, lower, in pixels of the picture; beyond its edges there is black."""
    flipped: bool


class ColorParams(NamedTuple):
    """How the colours of that part are changed."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """Turn of the colour circle, within [-0.5, 0.5]."""
    is_gray: bool = False
    erased: tuple[int, int, int, int] | None = None
    """Left, upper, right, lower of what is painted over, in pixels of the model's size."""

    def changes_colours(self) -> bool:
        """Whether anything but the patch differs from the picture."""
        return self._replace(erased=None) != ColorParams()


def random_view(
    width: int, height: int, augment: AugmentConfig, generator: np.random.Generator, *, image_px: Pixels = 224
) -> CropParams:
    """A crop of random area and ratio at a random place, as torchvision's `RandomResizedCrop` draws it, or a shift."""
    flipped = bool(generator.random() < augment.flip)
    if augment.pad_px:
        rows, columns = height_width(image_px)
        right, down = generator.integers(-augment.pad_px, augment.pad_px, size=2, endpoint=True)
        left, upper = round(int(right) * width / columns), round(int(down) * height / rows)
        return CropParams((left, upper, left + width, upper + height), flipped)
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
    side = min(width, height)  # A very long picture: its centre.
    left, upper = (width - side) // 2, (height - side) // 2
    return CropParams((left, upper, left + side, upper + side), flipped)


def random_look(augment: AugmentConfig, generator: np.random.Generator, *, image_px: Pixels) -> ColorParams:
    """Colours and a patch that is gone, as the settings say; nothing by default."""
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
    view: CropParams,
    *,
    image_px: Pixels,
    config: PixelConfig,
    look: ColorParams | None = None,
) -> UInt8[ndarray, "3 H W"]:
    """The view of the picture at the model's size: cut out, then resized, as torchvision's `resized_crop` does."""
    height, width = height_width(image_px)
    pixels = resize(_cut_out(image, view.box), height, width, interpolation=config.interpolation)
    if look is not None and look.changes_colours():
        pixels = _adjust_colors(pixels, look)
    if view.flipped:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    if look is not None and look.erased is not None:
        left, upper, right, lower = look.erased
        pixels[:, upper:lower, left:right] = np.round(255 * np.array(config.mean)).astype(np.uint8)[:, None, None]
    return pixels


def _cut_out(image: UInt8[ndarray, "H2 W2 3"], box: tuple[int, int, int, int]) -> UInt8[ndarray, "H3 W3 3"]:
    left, upper, right, lower = box
    height, width = image.shape[:2]
    inside = image[max(upper, 0) : lower, max(left, 0) : right]
    if left >= 0 and upper >= 0 and right <= width and lower <= height:
        return inside
    canvas = np.zeros((lower - upper, right - left, 3), dtype=np.uint8)
    top, start = max(-upper, 0), max(-left, 0)
    canvas[top : top + inside.shape[0], start : start + inside.shape[1]] = inside
    return canvas


def _adjust_colors(pixels: UInt8[ndarray, "3 H W"], look: ColorParams) -> UInt8[ndarray, "3 H W"]:
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    changes = (
        (ImageEnhance.Brightness, look.brightness),
        (ImageEnhance.Contrast, look.contrast),
        (ImageEnhance.Color, look.saturation),
    )
    for enhance, factor in changes:
        if factor != 1:
            image = enhance(image).enhance(factor)
    if look.hue:
        hsv = np.array(image.convert("HSV"))
        hsv[..., 0] += np.uint8(round(look.hue * 255) % 256)  # The circle wraps as bytes do.
        image = Image.fromarray(hsv, "HSV").convert("RGB")
    image = image.convert("L").convert("RGB") if look.is_gray else image
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _random_patch(generator: np.random.Generator, image_px: Pixels) -> tuple[int, int, int, int]:
    height, width = height_width(image_px)
    area = height * width * (0.02 + generator.random() * (0.33 - 0.02))
    ratio = math.exp(math.log(0.3) + generator.random() * (math.log(3.3) - math.log(0.3)))
    patch_width = min(width, max(1, round(math.sqrt(area * ratio))))
    patch_height = min(height, max(1, round(math.sqrt(area / ratio))))
    left, upper = generator.integers(width - patch_width + 1), generator.integers(height - patch_height + 1)
    return int(left), int(upper), int(left) + patch_width, int(upper) + patch_height
