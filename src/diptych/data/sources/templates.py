"""Captions from the names of classes: each template with the name in its place."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.core.encodings import read_lines
from diptych.core.errors import ConfigError, DataError, unknown_name
from diptych.core.paths import path_kind
from diptych.data.sources.class_layout import natural_key
from diptych.data.storage.inputs import reads

FIVE_TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a {} photo",
    "a {} picture",
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Python's stand-in for a byte of a file name that is not UTF-8; no file and no tokenizer takes it."""


def templates_of(options: Mapping[str, str]) -> tuple[str, ...]:
    """The templates of the file that a location's `?templates=FILE` names; none if it names none.

    Raises:
        DataError: as `read_templates`.
    """
    return read_templates(Path(options["templates"])) if "templates" in options else ()


def read_templates(path: Path) -> tuple[str, ...]:
    """One template a line, each with `{}` for the class.

    Raises:
        DataError: the file cannot be read, is empty, or a line lacks `{}`.
    """
    reads(path)
    templates = tuple(read_lines(path, what="templates"))
    for line in templates:
        if "{}" not in line:
            raise DataError(f"{path}: template {line!r} has no {{}} for the class")
    return templates


def named_templates() -> dict[str, Path]:
    """Sets of templates that come with Diptych, by name: OpenAI's for ImageNet and CIFAR (see NOTICE)."""
    folder = Path(__file__).parents[1] / "prompts"
    return {path.stem: path for path in sorted(folder.glob("*.txt"))}


def resolve_templates(given: Sequence[str]) -> tuple[str, ...]:
    """Templates as a user gives them: each a text with `{}`, the name of a set, or a file of them.

    >>> resolve_templates(["my {}"]), len(resolve_templates(["imagenet-80"]))
    (('my {}',), 80)

    Raises:
        ConfigError: one is none of these.
        DataError: a file holds something else.
    """
    sets, templates = named_templates(), list[str]()
    for text in given:
        if "{}" in text:
            templates.append(text)
        elif text in sets or path_kind(text) == "file":
            templates += read_templates(sets.get(text, Path(text)))
        else:
            named = unknown_name("set of templates", text, sets)
            raise ConfigError(f"template {text!r} has no {{}} for the class, and is no file; {named}")
    return tuple(templates)


def captions_or_filled(captions: tuple[str, ...], name: str | None, given: tuple[str, ...]) -> tuple[str, ...]:
    """A sample's captions; where it has none, or where templates were asked for, templates around its class's name.

    >>> captions_or_filled((), "sea_lion", ("a {}",)), captions_or_filled(("my dog",), "dog", ())
    (('a sea lion',), ('my dog',))
    """
    if name is None or (captions and not given):
        return captions
    return filled(given or FIVE_TEMPLATES, readable(name))


def filled(templates: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Each template around a class's name.

    >>> filled(("a {}", "my {}"), "dog")
    ('a dog', 'my dog')
    """
    return tuple(template.replace("{}", name) for template in templates)


def class_names(labels: Sequence[str], *, in_order: bool = False) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The classes that labels name, in words, and the class of each label.

    Labels that differ only in underscores and spaces are one class.

    Args:
        labels: as the data writes them.
        in_order: keep the order of the labels; otherwise the classes are sorted, numbers within names as numbers.

    >>> names, class_of_label = class_names(["sea_lion", "dog", "sea lion"])
    >>> names, class_of_label.tolist()
    (('dog', 'sea lion'), [1, 0, 1])
    """
    words = [readable(label) for label in labels]
    names = tuple(dict.fromkeys(words) if in_order else sorted(set(words), key=natural_key))
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[word] for word in words], dtype=np.int32)


def readable(name: str) -> str:
    r"""A class's name as people write it; what of a folder's name is not UTF-8 is read as Windows-1252.

    >>> readable("great_white_shark"), readable("caf\udce9")
    ('great white shark', 'café')
    """
    return " ".join(_SURROGATE.sub(_as_text, name).replace("_", " ").split())


def _as_text(surrogate: re.Match[str]) -> str:
    """What stands for a byte of a file name, as its character; others, as from broken JSON, as a replacement character."""
    byte = ord(surrogate.group()) - 0xDC00
    return bytes([byte]).decode("cp1252", "replace") if 0x80 <= byte <= 0xFF else "\ufffd"
