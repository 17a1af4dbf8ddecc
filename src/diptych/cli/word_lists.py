"""Reads lists of class names from the command line or from a text file."""

from collections.abc import Sequence
from pathlib import Path

from diptych.cli.output import warn
from diptych.core.encodings import read_lines
from diptych.core.paths import path_kind


def read_classes(words: Sequence[str]) -> list[str]:
    """The class names of an option. A word that names a file is replaced by the lines of the file.

    A word names a file if the file exists, and the word either is the only one or ends in `.txt`.

    Raises:
        DataError: a file cannot be read.
    """
    classes = list[str]()
    for word in words:
        is_file = (len(words) == 1 or word.lower().endswith(".txt")) and path_kind(word) == "file"
        classes += read_lines(Path(word), what="classes") if is_file else [word]
    return classes


def warn_of_classes(words: Sequence[str], classes: Sequence[str]) -> None:
    """Warn about a single class, and about a class with a comma, which was probably meant as several classes.

    Args:
        words: the values of `--classes`.
        classes: the result of `read_classes`.
    """
    with_comma = next((name for name in classes if "," in name and name in words), None)
    if with_comma is not None:
        parts = " ".join(f'"{part.strip()}"' for part in with_comma.split(",") if part.strip())
        warn(f"--classes: {with_comma!r} is one class; for several, write --classes {parts}")
    elif len(classes) == 1:
        warn(f"--classes: {classes[0]!r} is the only class, so every picture gets it with 100 %; name at least two")
