"""Read and write the evaluation transform as the settings of a Hugging Face image processor (`preprocessor_config.json`)."""

import math
from collections.abc import Mapping
from typing import Any

from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import from_plain
from diptych.images.resample import FILTERS, Interpolation
from diptych.images.transforms import OPENAI_MEAN, OPENAI_STD, PixelConfig, Pixels, height_width
from diptych.models.config import CLIPConfig

_CLIP = {"do_center_crop": True, "resample": 3, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}
_HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Siglip": {"do_center_crop": False, "resample": 3, **_HALVES},
    "ViT": {"do_center_crop": False, "resample": 2, **_HALVES},
}
"""Defaults of transformers for settings that a file does not contain, by a prefix of the processor's class."""
_CLASS_ENDS = ("ImageProcessor", "FeatureExtractor")
_RESAMPLE: dict[int, Interpolation] = {int(number): name for name, number in FILTERS.items()}
"""Filters by Pillow's numbers, as in the file."""


def processor_pixels(plain: Mapping[str, Any], image_px: Pixels, *, what: str) -> PixelConfig:
    """Return the evaluation transform of a Hugging Face image processor.

    The pixels equal those of the processors in transformers that use Pillow. Processors that use torchvision differ by a few of
    255 levels.

    >>> siglip = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 224}}
    >>> processor_pixels(siglip, 224, what="preprocessor_config.json").resize
    'squash'

    Args:
        plain: the settings in the file. Null values and missing settings have the defaults of transformers; a missing size is
            the size of the model's input.
        image_px: size of the model's input.
        what: name of the file, which starts the messages.

    Raises:
        BundleError: the processor has an unsupported setting, or contradicts the size of the input.
    """
    given = {name: value for name, value in plain.items() if value is not None}
    try:
        settings = {**_defaults(given), **given}
        _refuse_switches(settings)
        mean, std = _normalization(settings)
        config = {"mean": mean, "std": std, "interpolation": _interpolation(settings), **_resize(settings, image_px)}
        return from_plain(PixelConfig, config, what=what)
    except (ConfigError, TypeError, ValueError, ArithmeticError, KeyError) as error:
        reason = f"damaged ({error!r:.100})" if not isinstance(error, ConfigError) else str(error)
        raise BundleError(f"{what}: {reason.removeprefix(f'{what}: ')}") from None


def processor_config(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`: resize, crop the center, rescale, normalize.

    Hugging Face's processors can neither resize an image to cover a rectangle nor add borders on both sides. In both cases, the
    returned settings resize to the input size instead, which changes the aspect ratio.
    """
    height, width = height_width(config.image.image_px)
    pixels, is_square = config.pixels, height == width
    resized = height if pixels.resize_px is None else pixels.resize_px
    keeps_ratio = is_square and pixels.resize == "crop"
    is_cropped = keeps_ratio or (is_square and pixels.resize == "squash" and resized != height)
    if keeps_ratio:
        size = {"shortest_edge": resized}
    elif is_cropped:
        size = {"height": resized, "width": resized}
    else:
        size = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True),
        "do_center_crop": is_cropped,
        "size": size,
        "crop_size": {"height": height, "width": width},
        "resample": int(FILTERS[pixels.interpolation]),
        "rescale_factor": 1 / 255,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the processor's class, or CLIP's defaults if the file does not name a class."""
    name = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "CLIPImageProcessor")
    base = name.removesuffix("Fast").removesuffix("Pil")
    kind = next((kind for kind in _DEFAULTS if base in {f"{kind}{end}" for end in _CLASS_ENDS}), None)
    if kind is None:
        known = ", ".join(f"{kind}{_CLASS_ENDS[0]}" for kind in _DEFAULTS)
        raise ConfigError(f"is a {name:.60}, which Diptych does not support; it supports {known}")
    return _DEFAULTS[kind]


def _refuse_switches(settings: Mapping[str, Any]) -> None:
    if settings.get("do_resize") is False:
        raise ConfigError("has do_resize false, which Diptych does not support")
    if settings.get("do_pad") is not False and settings.get("pad_size") not in (None, settings.get("crop_size")):
        raise ConfigError(
            f"has pad_size {settings['pad_size']}, which adds borders on two sides only; Diptych does not support it"
        )
    if settings.get("do_thumbnail") or settings.get("use_square_size"):
        raise ConfigError("has do_thumbnail or use_square_size, which Diptych does not support")


def _normalization(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of pixels in [0, 1].

    transformers multiplies the levels 0 to 255 by `rescale_factor` and then normalizes them. Each step can be disabled.
    """
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        raise ConfigError(f"has rescale_factor {factor}; it must be above 0")
    is_normalized = settings.get("do_normalize", True)
    mean = _channels(settings["image_mean"] if is_normalized else 0.0)
    std = _channels(settings["image_std"] if is_normalized else 1.0)
    if math.isclose(factor, 1 / 255, rel_tol=1e-6):
        return mean, std
    levels = 255 * factor
    return tuple(value / levels for value in mean), tuple(value / levels for value in std)


def _channels(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(float(each) for each in value)


def _interpolation(settings: Mapping[str, Any]) -> Interpolation:
    resample = settings["resample"]
    if not isinstance(resample, int) or resample not in _RESAMPLE:
        supported = ", ".join(f"{number} ({name})" for number, name in sorted(_RESAMPLE.items()))
        raise ConfigError(f"has resample {resample!r:.40}; Diptych supports {supported}")
    return _RESAMPLE[resample]


def _resize(settings: Mapping[str, Any], image_px: Pixels) -> dict[str, Any]:
    """Return the settings of `PixelConfig` that describe resize and crop.

    Raises:
        ConfigError: the result would not have the size of the model's input, or would have borders.
    """
    height, width = height_width(image_px)
    is_cropped, short = bool(settings["do_center_crop"]), min(height, width)
    size, given = _sides(settings.get("size"), is_cropped=is_cropped), settings.get("size")
    target = f"the model's input is {height}x{width} px (image_size in config.json)"
    crop = _sides(settings.get("crop_size"), is_cropped=False)
    if is_cropped and crop not in (None, (height, width)):
        raise ConfigError(f"has crop_size {settings['crop_size']}, but {target}")
    if isinstance(size, int):
        if not is_cropped:
            raise ConfigError(
                f"has size {given} without do_center_crop, so its images have no fixed shape, but {target}"
            )
        if size < short:
            raise ConfigError(f"has size {given}, which is smaller than its crop; {target}")
        return {"crop_rounding": "down", **({} if size == short else {"resize_px": size})}
    if size is None:
        return {"crop_rounding": "down"} if is_cropped else {"resize": "squash"}
    if size == (height, width):
        return {"resize": "squash"}
    if is_cropped and height == width and size[0] == size[1] > height:
        return {"resize": "squash", "resize_px": size[0], "crop_rounding": "down"}
    raise ConfigError(f"has size {given}, but {target}")


def _sides(size: Any, *, is_cropped: bool) -> int | tuple[int, int] | None:
    """Return the short side or (height, width) of a size in the file. One number is the short side if a crop follows."""
    match size:
        case None:
            return None
        case bool():
            pass
        case int():
            return size if is_cropped else (size, size)
        case {"shortest_edge": int(short), **rest} if not {name for name in rest if rest[name] is not None}:
            return short
        case {"height": int(height), "width": int(width), **rest} if not {n for n in rest if rest[n] is not None}:
            return height, width
        case [int(height), int(width)]:
            return height, width
    raise ConfigError(f"has size {size!r:.100}; Diptych supports a shortest_edge, or height and width")
