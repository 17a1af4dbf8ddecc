"""Which column of a `datasets` set holds the pictures, the captions, the labels and the splits."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diptych.core.errors import DataError

_IMAGE = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values", "image_bytes", "bytes")
_CAPTION = ("caption", "captions", "text", "texts", "sentence", "sentences", "txt", "title", "description", "prompt")
_LABEL = ("label", "labels", "class", "category", "fine_label")
_SPLIT = "split"
"""What a column may be called, the likeliest first. Upper and lower case are one."""

_STORED = r"struct<(path: (large_)?string, )?bytes: (large_)?binary(, path: (large_)?string)?>"
"""How Arrow calls a picture's type where the file does not say that it holds pictures."""
OPTIONS = ("image", "caption", "label", "split", "config", "templates")


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None for one that the set has not."""

    image: str
    captions: tuple[str, ...]
    """One column, or several with a caption each."""
    label: str | None
    split: str | None
    """Texts such as `train`, in sets that keep all rows in one split."""
    classes: tuple[str, ...]
    """Names of the labels, where the set's own type of the column has them."""

    def beside_image(self) -> list[str]:
        """All others, each once."""
        named = (*self.captions, self.label, self.split)
        return list(dict.fromkeys(name for name in named if name is not None))


def find_columns(features: Mapping[str, Any], options: Mapping[str, str], *, where: str) -> Columns:
    """The columns that the options name, or that have a usual name and a type that fits.

    Raises:
        DataError: there is no column of pictures, or of captions or labels, or several may be meant: all are listed.
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
    """`image`, `binary` (a file's bytes), `label` (with names), `text`, `texts`, or what else the type is called."""
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
    """The column that the option names, None if it names none."""
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
    """The only column of pictures, or the one with a usual name; plain bytes need the name."""
    images = [name for name, kind in kinds.items() if kind == "image"]
    found = images[0] if len(images) == 1 else _usual(_IMAGE, ("image",) if images else ("binary",), kinds)
    if found is None:
        what = f"several columns of pictures ({', '.join(images)})" if images else "no column of pictures"
        raise _absent("image", what, kinds, where)
    return found


def _captions(kinds: Mapping[str, str], options: Mapping[str, str], where: str) -> tuple[str, ...]:
    """One column, or several: those that the option names with commas between, or `caption_0`, `caption_1` and so on."""
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
