"""The files that CLIP_benchmark stores next to or above its tars: class names, templates, and the type of the dataset."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from diptych.core.encodings import decode_text
from diptych.core.errors import DataError

CLASSES, TEMPLATES, TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"


class BenchmarkFiles(NamedTuple):
    """Contents of the files, each of which may be missing."""

    classes: tuple[str, ...] = ()
    """Class names by label number."""
    templates: tuple[str, ...] = ()
    is_retrieval: bool = False
    """Whether each line of a `.txt` is a caption."""


def benchmark_files(folders: Iterable[Path]) -> BenchmarkFiles:
    """Return the contents of the files in the given folders of tars, or in the folders above.

    Raises:
        DataError: the folders have different files, or a file cannot be read.
    """
    found = {_of_folder(folder): folder for folder in dict.fromkeys(folders)}
    if len(found) > 1:
        first, second, *_ = found.values()
        raise DataError(
            f"{first} and {second} have different {CLASSES}, {TEMPLATES} or {TYPE}; read each alone, or both as "
            f"'mix: shards:{first} + shards:{second}'"
        )
    return next(iter(found), BenchmarkFiles())


def _of_folder(folder: Path) -> BenchmarkFiles:
    places = (folder, folder.resolve().parent)
    classes, templates, kind = (_lines(places, name) for name in (CLASSES, TEMPLATES, TYPE))
    return BenchmarkFiles(classes, _with_braces(templates, folder), kind[:1] == ("retrieval",))


def _lines(places: Iterable[Path], name: str) -> tuple[str, ...]:
    path = next((place / name for place in places if (place / name).is_file()), None)
    return () if path is None else read_lines(path)


def read_lines(path: Path) -> tuple[str, ...]:
    """Return the stripped lines of a text file, without empty lines at its end.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text, _ = decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return tuple(line.strip() for line in text.rstrip().splitlines())


def _with_braces(templates: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Replace CLIP_benchmark's placeholder `{c}` by `{}`."""
    ours = tuple(template.replace("{c}", "{}") for template in templates if template)
    for template in ours:
        if "{}" not in template:
            raise DataError(f"{folder}: {TEMPLATES}: template {template!r} has no {{c}} for the class")
    return ours
