"""Find the columns of images, captions, labels and splits in a Hugging Face dataset."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diptych.core.errors import DataError

_IMAGE = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values", "image_bytes", "bytes")
_CAPTION = ("caption", "captions", "text", "texts", "sentence", "sentences", "txt", "title", "description", "prompt")
_LABEL = ("label", "labels", "class", "category", "fine_label")
_SPLIT = "split"
"""Usual names of the columns, the likeliest first. Case is ignored."""

_STORED = r"struct<(path: (large_)?string, )?bytes: (large_)?binary(, path: (large_)?string)?>"
"""Arrow's type of an image column in files without the type information of `datasets`."""
OPTIONS = ("image", "caption", "label", "split", "config", "templates")


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None for a missing column."""

    image: str
    captions: tuple[str, ...]
    """One column, or several with one caption each."""
    label: str | None
    split: str | None
    """Column of texts such as `train`, in datasets that store all rows in one split."""
    classes: tuple[str, ...]
    """Names of the labels, if the type of the column defines them."""

    def without_image(self) -> list[str]:
        """Return the distinct names of all columns but the image."""
        named = (*self.captions, self.label, self.split)
        return list(dict.fromkeys(name for name in named if name is not None))


def find_columns(features: Mapping[str, Any], options: Mapping[str, str], *, where: str) -> Columns:
    """Return the columns that the options name, or that have a usual name and a fitting type.

    Raises:
        DataError: there is no column of images, or none of captions or labels, or the choice is ambiguous. The message lists
            all columns.
    """
    kinds = {name: _kind(feature) for name, feature in features.items()}
    image = _one("image", ("image", "binary"), kinds, options, where) or _image(kinds, where)
    label = _one("label", ("label", "text"), kinds, options, where) or _usual(_LABEL, ("label", "text"), kinds)
    split = _usual((_SPLIT,), ("text",), kinds)
    captions = _captions(kinds, options, where)
    if label is None and not captions:
        labels = [name for name, kind in kinds.items() if kind == "label"]
        if len(labels) != 1:
            raise _absent("caption", "no column of captions, nor one of labels", kinds, where)
        label = labels[0]
    classes = tuple(features[label].names) if label is not None and kinds[label] == "label" else ()
    return Columns(image, captions, label, split, classes)


def _kind(feature: Any) -> str:
    """Return `image`, `binary` (bytes of a file), `label` (with names), `text`, `texts`, or Arrow's name of another type."""
    from datasets import ClassLabel, Features, Image  # noqa: PLC0415  (an extra)

    arrow = Features({"it": feature}).arrow_schema.field("it").type
    if isinstance(feature, Image) or re.fullmatch(_STORED, str(arrow)):
        return "image"
    if isinstance(feature, ClassLabel):
        return "label"
    names = {"string": "text", "large_string": "text", "binary": "binary", "large_binary": "binary"}
    texts = re.fullmatch(r"(large_)?list<\w+: (large_)?string>|fixed_size_list<.*string.*>\[\d+\]", str(arrow))
    return "texts" if texts else names.get(str(arrow), str(arrow)[:40])


def _one(
    option: str, wanted: tuple[str, ...], kinds: Mapping[str, str], options: Mapping[str, str], where: str
) -> str | None:
    """Return the column that the option names; None if the option is not given."""
    name = options.get(option)
    if name is None:
        return None
    if name not in kinds:
        raise _absent(option, f"no column '{name}'", kinds, where)
    if kinds[name] not in wanted:
        hint = "; for a table with paths there is csv:FILE" if (option, kinds[name]) == ("image", "text") else ""
        raise DataError(f"{where}: column '{name}' holds {kinds[name]}, which is no {option}{hint}")
    return name


def _usual(names: Iterable[str], wanted: tuple[str, ...], kinds: Mapping[str, str]) -> str | None:
    fitting = {name.lower(): name for name, kind in kinds.items() if kind in wanted}
    return next((fitting[name] for name in names if name in fitting), None)


def _image(kinds: Mapping[str, str], where: str) -> str:
    """Return the only column of images, or the one with a usual name; a column of plain bytes must have a usual name."""
    images = [name for name, kind in kinds.items() if kind == "image"]
    found = images[0] if len(images) == 1 else _usual(_IMAGE, ("image",) if images else ("binary",), kinds)
    if found is None:
        what = f"several columns of pictures ({', '.join(images)})" if images else "no column of pictures"
        raise _absent("image", what, kinds, where)
    return found


def _captions(kinds: Mapping[str, str], options: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Return one column, or several: those in the comma-separated option, or `caption_0`, `caption_1` and so on."""
    if "caption" in options:
        names = (options["caption"],) if options["caption"] in kinds else options["caption"].split(",")
        found = [_one("caption", ("text", "texts"), kinds, {"caption": name.strip()}, where) for name in names]
        return tuple(name for name in found if name is not None)
    usual = _usual(_CAPTION, ("text", "texts"), kinds)
    if usual is not None:
        return (usual,)
    return tuple(name for name, kind in kinds.items() if kind == "text" and re.fullmatch(r"caption_?\d+", name.lower()))


def _absent(option: str, what: str, kinds: Mapping[str, str], where: str) -> DataError:
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    return DataError(f"{where}: has {what}; it has: {listed or 'none'}. Name it: {where}?{option}=COLUMN")
