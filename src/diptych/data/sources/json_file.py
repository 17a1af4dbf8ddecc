"""`json:FILE`: a list of {"image": path, "caption": text or "captions": [texts]}, as JSON or JSON Lines."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from diptych.core.errors import DataError
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.data.sources.location import existing_file, read_location
from diptych.data.sources.templates import templates_of
from diptych.data.storage.inputs import reads

_OTHER_NAMES = {"image": ("file_name", "filename", "filepath", "image_path"), "caption": ("text",)}


def read_json(location: str) -> Listing:
    """Read a JSON file. Image paths are relative to the file's folder, or to `?root=DIR`.

    Optional keys are "split", and "label", a class name from which captions are made if there are none (`?templates=FILE`).

    Raises:
        DataError: the file is missing or not a list, a row lacks a key (the message names the row and its keys), or an image
            is missing.
    """
    path, options = read_location(location, ("root", "templates"))
    existing_file(path, kind="json")
    builder = ListingBuilder(Path(options.get("root", path.parent)), where=path, templates=templates_of(options))
    try:
        for number, given in enumerate(_rows(path)):
            row = _usual_names(given) if isinstance(given, dict) else given
            problem = _problem(row)
            if problem is not None:
                raise DataError(f"{path}: row {number}{problem}")
            builder.add(row["image"], _captions(row), label=row.get("label"), split=row.get("split"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return builder.build()


def _rows(path: Path) -> Iterator[Any]:
    """Yield the rows one by one, so that a JSON Lines file is never completely in memory."""
    reads(path)
    if path.suffix.lower() in {".jsonl", ".ndjson"}:
        try:
            with path.open("rb") as file:  # In text mode, characters such as U+2028 would end a line.
                for number, line in enumerate(file, start=1):
                    if not line.isspace():
                        yield from_json(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not JSON: {error}") from None
        return
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, list):
        raise DataError(f"{path}: holds {_json_name(content)}, not a list of rows")
    yield from content


def _usual_names(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with `image` and `caption` added if it has only other usual names for them.

    >>> _usual_names({"file_name": "a.jpg", "text": "a dog"})
    {'file_name': 'a.jpg', 'text': 'a dog', 'image': 'a.jpg', 'caption': 'a dog'}
    """
    named = dict(row)
    for usual, others in _OTHER_NAMES.items():
        other = next((name for name in others if name in row), None)
        if other is not None and usual not in row and not (usual == "caption" and "captions" in row):
            named[usual] = row[other]
    return named


def _problem(row: Any) -> str | None:
    """Return what is wrong with a row, as the end of a sentence about it; None if the row is valid."""
    if not isinstance(row, dict):
        return f" is {_json_name(row)}, not an object"
    if "image" not in row or not ("caption" in row or "captions" in row or "label" in row):
        lacks = "no key 'image'" if "image" not in row else "none of 'caption', 'captions', 'label'"
        return f" has {lacks}; it has: {', '.join(row) or 'none'}"
    if not isinstance(row["image"], str):
        return f": 'image' is {_json_name(row['image'])}, not a path"
    captions = _captions(row)
    if not all(isinstance(caption, str) for caption in captions):
        return f": its captions are not texts: {tuple(captions)!r:.80}"
    for optional in ("split", "label"):
        if optional in row and not isinstance(row[optional], str):
            return f": '{optional}' is {_json_name(row[optional])}, not a text"
    return None


def _captions(row: dict[str, Any]) -> list[Any]:
    captions = row["captions"] if "captions" in row else row.get("caption", [])
    captions = captions if isinstance(captions, list) else [captions]
    return ["" if caption is None else caption for caption in captions]


def _json_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
