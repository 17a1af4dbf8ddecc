"""Lists of words as the command line takes them: one by one, or in a text file."""

from collections.abc import Sequence
from pathlib import Path

from diptych.cli.output import warn
from diptych.core.errors import DataError
from diptych.core.paths import path_kind


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: it cannot be read, is not UTF-8, or holds no text.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    texts = [line for line in lines if line]
    if not texts:
        raise DataError(f"{path}: holds no texts")
    return texts


def read_classes(words: Sequence[str]) -> list[str]:
    """The names of classes: the words; in place of a word that names a file, its lines.

    A word names a file if there is one and the word is the only one or ends in `.txt`.

    Raises:
        DataError: a file cannot be read.
    """
    classes = list[str]()
    for word in words:
        is_file = (len(words) == 1 or word.lower().endswith(".txt")) and path_kind(word) == "file"
        classes += read_lines(Path(word)) if is_file else [word]
    return classes


def warn_of_classes(words: Sequence[str], classes: Sequence[str]) -> None:
    """Warn about words that were probably meant as several classes, and about a single class.

    Args:
        words: what `--classes` was given.
        classes: what `read_classes` made of it.
    """
    with_comma = next((name for name in classes if "," in name and name in words), None)
    if with_comma is not None:
        parts = " ".join(f'"{part.strip()}"' for part in with_comma.split(",") if part.strip())
        warn(f"--classes: {with_comma!r} is one class; for several, write --classes {parts}")
    elif len(classes) == 1:
        warn(f"--classes: {classes[0]!r} is the only class, so every picture gets it with 100 %; name at least two")
