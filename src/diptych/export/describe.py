"""Describe in words how a model transforms images; `bundle.describe_text` does the same for texts."""

from diptych.images.transforms import height_width, size_name
from diptych.models.config import CLIPConfig


def describe_image_transform(config: CLIPConfig) -> list[str]:
    """Return the steps from an image to the input of the image tower in order, one phrase per step."""
    height, width = height_width(config.image.image_px)
    pixels, size = config.pixels, size_name(config.image.image_px)
    steps = ["turned upright, converted to RGB"]
    match pixels.resize:
        case "crop":
            target = (
                f"short side resized to {pixels.resize_px or height} px"
                if height == width
                else "resized to cover the input"
            )
            steps.append(f"{target} ({pixels.interpolation}), center cropped to {size} px")
        case "squash":
            steps.append(f"resized to {size} px ({pixels.interpolation}), which changes the aspect ratio")
        case "pad":
            steps.append(
                f"long side resized to {size} px ({pixels.interpolation}), borders of color {pixels.pad_color}"
            )
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (pixels.mean, pixels.std))
    return [*steps, "scaled to [0, 1]", f"minus the mean ({mean})", f"divided by the standard deviation ({std})"]
