"""Captions from class names and templates."""

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
"""Surrogates, which Python uses for bytes of file names that are not UTF-8; they cannot be written or tokenized."""


def templates_of(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the templates of the file that the option `templates` names; empty if the option is missing.

    Raises:
        DataError: as for `read_templates`.
    """
    return read_templates(Path(options["templates"])) if "templates" in options else ()


def read_templates(path: Path) -> tuple[str, ...]:
    """Return the templates in a file with one template per line; each contains `{}` for the class name.

    Raises:
        DataError: the file cannot be read or is empty, or a line lacks `{}`.
    """
    reads(path)
    templates = tuple(read_lines(path, what="templates"))
    for line in templates:
        if "{}" not in line:
            raise DataError(f"{path}: template {line!r} has no {{}} for the class")
    return templates


def named_templates() -> dict[str, Path]:
    """Return the files of the included sets of templates by name: OpenAI's for ImageNet and CIFAR (see NOTICE)."""
    folder = Path(__file__).parents[1] / "prompts"
    return {path.stem: path for path in sorted(folder.glob("*.txt"))}


def resolve_templates(given: Sequence[str]) -> tuple[str, ...]:
    """Return the templates that a user specifies: each item is a text with `{}`, the name of a set, or a file.

    >>> resolve_templates(["my {}"]), len(resolve_templates(["imagenet-80"]))
    (('my {}',), 80)

    Raises:
        ConfigError: an item is none of these.
        DataError: as for `read_templates`.
    """
    sets, templates = named_templates(), list[str]()
    for text in given:
        if "{}" in text:
            templates.append(text)
        elif text in sets or path_kind(text) == "file":
            templates += read_templates(sets.get(text, Path(text)))
        else:
            named = unknown_name("set of templates", text, sets)
            raise ConfigError(f"template {text!r} has no {{}} for the class, and is not a file; {named}")
    return tuple(templates)


def captions_or_filled(captions: tuple[str, ...], name: str | None, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return a sample's captions, or templates with its class name if it has none or if templates are given.

    >>> captions_or_filled((), "sea_lion", ("a {}",)), captions_or_filled(("my dog",), "dog", ())
    (('a sea lion',), ('my dog',))
    """
    if name is None or (captions and not given):
        return captions
    return filled(given or FIVE_TEMPLATES, readable(name))


def filled(templates: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return each template with the class name in place of `{}`.

    >>> filled(("a {}", "my {}"), "dog")
    ('a dog', 'my dog')
    """
    return tuple(template.replace("{}", name) for template in templates)


def class_names(labels: Sequence[str], *, in_order: bool = False) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the readable class names, and the class of each label.

    Labels that differ only in underscores and spaces are the same class.

    Args:
        labels: the labels as written in the data.
        in_order: keep the order of the labels; otherwise, the classes are sorted, with numbers in names sorted by value.

    >>> names, class_of_label = class_names(["sea_lion", "dog", "sea lion"])
    >>> names, class_of_label.tolist()
    (('dog', 'sea lion'), [1, 0, 1])
    """
    words = [readable(label) for label in labels]
    names = tuple(dict.fromkeys(words) if in_order else sorted(set(words), key=natural_key))
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[word] for word in words], dtype=np.int32)


def readable(name: str) -> str:
    r"""Return a readable class name: underscores become spaces, and bytes that are not UTF-8 are decoded as Windows-1252.

    >>> readable("great_white_shark"), readable("caf\udce9")
    ('great white shark', 'café')
    """
    return " ".join(_SURROGATE.sub(_as_text, name).replace("_", " ").split())


def _as_text(surrogate: re.Match[str]) -> str:
    """Return the character for a surrogate that encodes a byte; U+FFFD for other surrogates, such as those in broken JSON."""
    byte = ord(surrogate.group()) - 0xDC00
    return bytes([byte]).decode("cp1252", "replace") if 0x80 <= byte <= 0xFF else "\ufffd"
