"""The evaluation transform as Hugging Face's `preprocessor_config.json`."""

from typing import Any

from diptych.images.transforms import FILTERS, height_width
from diptych.models.config import CLIPConfig


def processor_config(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`: resize the short side, crop the center, rescale, normalize.

    Hugging Face's processors cannot resize an image so that it covers a rectangle. For a model with a non-square input, the
    content resizes to the input size instead, which changes the aspect ratio.
    """
    height, width = height_width(config.image.image_px)
    is_square = height == width
    return {
        "image_processor_type": "CLIPImageProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True),
        "do_center_crop": is_square,
        "size": {"shortest_edge": height} if is_square else {"height": height, "width": width},
        "crop_size": {"height": height, "width": width},
        "resample": int(FILTERS[config.pixels.interpolation]),
        "rescale_factor": 1 / 255,
        "image_mean": list(config.pixels.mean),
        "image_std": list(config.pixels.std),
    }
