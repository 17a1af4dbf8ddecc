"""Write the image transform for the example program of an ONNX folder, as Python code that needs only Pillow."""

from diptych.images.transforms import height_width
from diptych.models.config import CLIPConfig

_SQUARE = "size = (max(@COLUMNS@, image.width * @ROWS@ // image.height), max(@ROWS@, image.height * @COLUMNS@ // image.width))"
_RECTANGLE = """ratio = min(image.height / @ROWS@, image.width / @COLUMNS@)
    size = (round(image.width / ratio), round(image.height / ratio))"""
_SQUASH = "size = (@COLUMNS@, @ROWS@)"
_PAD = """ratio = max(image.height / @ROWS@, image.width / @COLUMNS@)
    size = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))"""
_CROP = """left, top = @ROUND@((size[0] - width) / 2), @ROUND@((size[1] - height) / 2)
    image = image.resize(size, TRANSFORM["resample"]).crop((left, top, left + width, top + height))"""
_BORDERS = """left, top = ((size[0] - width) / 2, (size[1] - height) / 2)
    left, top = (@ROUND@(edge) if edge > 0 else -int(-edge) for edge in (left, top))
    resized, image = image.resize(size, TRANSFORM["resample"]), Image.new("RGB", (width, height), @COLOR@)
    image.paste(resized, (-left, -top))"""


def transform_lines(config: CLIPConfig) -> str:
    """Return the lines of code that resize `image` to the `width` and `height` of the model's input."""
    pixels, (height, width) = config.pixels, height_width(config.image.image_px)
    rows, columns = "height", "width"
    if pixels.resize_px is not None:
        short = min(height, width)
        rows, columns = (str(side * pixels.resize_px // short) for side in (height, width))
    sizes = {"crop": _SQUARE if height == width else _RECTANGLE, "squash": _SQUASH, "pad": _PAD}
    lines = f"{sizes[pixels.resize]}\n    {_BORDERS if pixels.resize == 'pad' else _CROP}"
    values = {"ROWS": rows, "COLUMNS": columns, "COLOR": str(pixels.pad_color)}
    values["ROUND"] = "round" if pixels.crop_rounding == "even" else "int"
    for name, value in values.items():
        lines = lines.replace(f"@{name}@", value)
    return lines
