"""`csv:FILE`: a table with a header row and any separator; `tsv-folder:DIR`: a folder with a table without a header row.

Columns are detected by the names that other tools use: img2dataset, open_clip's trainer (`filepath` and `title`), the Kaggle
dumps. If the detection fails or selects the wrong column, name the columns in the location:
`csv:FILE?image=filepath&caption=title&separator=tab`.
"""

import ast
import csv
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from diptych.core.errors import DataError
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.data.sources.location import existing_file, existing_folder, read_location
from diptych.data.sources.templates import templates_of
from diptych.data.storage.inputs import looked_up, reads, warn

_SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
_IMAGE = ("image", "filepath", "image_path", "path", "file", "filename", "file_name", "image_name", "img", "image_file")
_COLUMNS = {
    "image": _IMAGE,
    "caption": ("caption", "captions", "title", "text", "comment", "description", "sentence"),
    "label": ("label", "class", "category"),
    "split": ("split", "subset", "partition"),
}
"""Usual names of the columns, the likeliest first. Case is ignored."""

csv.field_size_limit(2**24)  # A caption may be longer than Python's default of 128 KiB allows.

_MAX_LINES = 4
"""Number of additional lines that a row may span without a warning."""
_END = "\x1e" * 3
"""A sentinel line after the end of the file: if it is part of a row, a quote was not closed."""


def read_csv(location: str) -> Listing:
    """Read a table with one row per caption or per image. Image paths are relative to the file's folder, or to `?root=DIR`.

    Raises:
        DataError: the file is missing or empty, a column cannot be found, a row has too few or too many fields, or an image
            is missing.
    """
    path, options = read_location(location, (*_COLUMNS, "separator", "encoding", "root", "templates"))
    existing_file(path, kind="csv")
    builder = ListingBuilder(Path(options.get("root", path.parent)), where=path, templates=templates_of(options))
    rows = _rows(path, options)
    _, heading = next(rows)
    columns = _find_columns(path, heading, options)
    image = columns["image"]
    caption, label, split = (columns.get(name) for name in ("caption", "label", "split"))
    needed = max(image, caption or 0)
    for number, row in rows:
        too_many = any(field.strip() for field in row[len(heading) :])
        if too_many or len(row) <= needed:
            hint = "; a field that holds the separator needs quotes around it" if too_many else ""
            raise DataError(
                f"{path}: line {number} has {len(row)} fields, the heading {len(heading)}: {row!r:.80}{hint}"
            )
        builder.add(
            row[image].strip(),
            () if caption is None else _captions_in(row[caption].strip()),
            label=None if label is None or label >= len(row) else row[label] or None,
            split=None if split is None or split >= len(row) else row[split] or None,
        )
    return builder.build()


def _captions_in(cell: str) -> list[str]:
    """Return the captions of a cell, which holds one caption or a list in JSON or Python syntax.

    >>> _captions_in('["one", "two"]'), _captions_in("['one', 'two']"), _captions_in("[sic] a dog")
    (['one', 'two'], ['one', 'two'], ['[sic] a dog'])
    """
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    for read in (json.loads, ast.literal_eval):
        try:
            content = read(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(content, list) and content and all(isinstance(text, str) for text in content):
            return [text.strip() for text in content]
    return [cell]


def read_tsv_folder(location: str) -> Listing:
    """Read a folder with `captions.txt`, one `filename<TAB>caption` per line, and images in `images/` or next to the file.

    Raises:
        DataError: the folder or the file is missing, a line has no tab, or an image is missing.
    """
    folder = existing_folder(Path(location), kind="tsv-folder")
    path = folder / "captions.txt"
    reads(folder)
    if not path.is_file():
        raise DataError(f"{folder}: holds no captions.txt")
    builder = ListingBuilder(folder / "images" if looked_up(folder / "images").is_dir() else folder, where=path)
    for number, line in _lines(path, "utf-8-sig"):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise DataError(f"{path}: line {number} is not 'filename<TAB>caption': {line[:80]!r}")
        builder.add(name.strip(), [caption.strip()])
    return builder.build()


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    reads(path)
    try:
        with path.open(encoding=encoding, newline="") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not {encoding.removesuffix('-sig')} text ({error.reason})") from None


def _rows(path: Path, options: dict[str, str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of each row, the header first; quoted fields may contain separators and line breaks."""
    encoding = options.get("encoding", "utf-8-sig")
    reads(path)
    try:
        with path.open(encoding=encoding, newline="") as file:
            first = file.readline()
            if not first.strip():
                raise DataError(f"{path}: has no heading; its first line is empty")
            file.seek(0)
            reader = csv.reader(chain(file, [_END]), delimiter=_separator(path, first, options))
            first_line, line, row = 1, 0, list[str]()
            for following in reader:
                if row and (row[0] or any(field.strip() for field in row)):
                    if line - first_line >= _MAX_LINES:
                        _warn_of_long_field(path, first_line, line)
                    yield line, row
                first_line, line, row = line + 1, reader.line_num, following
            if row != [_END]:
                raise DataError(f"{path}: a quote that line {first_line} opens is never closed: {row!r:.80}")
    except UnicodeDecodeError as error:
        hint = "" if "encoding" in options else "; if it is an older one, say so: csv:FILE?encoding=latin-1"
        raise DataError(f"{path}: is not {encoding.removesuffix('-sig')} text ({error.reason}){hint}") from None
    except (LookupError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _warn_of_long_field(path: Path, first_line: int, line: int) -> None:
    text = (
        f"{path}: lines {first_line} to {line} are one row, since a quote on line {first_line} is closed only there; "
        "if they are several rows, a quote is missing or too many"
    )
    warn(text)


def _separator(path: Path, heading: str, options: dict[str, str]) -> str:
    """Return the separator in the options, or the one that occurs most often in the header row."""
    named = options.get("separator")
    if named is None:
        return max(_SEPARATORS.values(), key=heading.count)
    separator = _SEPARATORS.get(named, named)
    if len(separator) != 1:
        raise DataError(f"{path}: separator is '{named}'; it is one character, or {', '.join(_SEPARATORS)}")
    return separator


def _find_columns(path: Path, heading: Sequence[str], options: dict[str, str]) -> dict[str, int]:
    """Return the index of each column of `_COLUMNS` that the table has. The image column is always among them."""
    names = [name.strip().lower() for name in heading]
    found: dict[str, int] = {}
    for column, usual in _COLUMNS.items():
        wanted = (options[column].lower(),) if column in options else usual
        index = next((names.index(name) for name in wanted if name in names), None)
        if index is not None:
            found[column] = index
        elif column in options or column == "image":
            raise DataError(
                f"{path}: has no column '{wanted[0]}'; it has: {', '.join(heading)}. Name it: csv:FILE?{column}=NAME"
            )
    if not found.keys() & {"caption", "label"}:
        raise DataError(
            f"{path}: has no column 'caption', nor 'label'; it has: {', '.join(heading)}. Name it: csv:FILE?caption=NAME"
        )
    return found
