"""`json:FILE`: a list of {"image": path, "caption": text or "captions": [texts]}, as JSON or one object a line."""

import json
from pathlib import Path
from typing import Any

from diptych.core.errors import DataError
from diptych.data.sources.listing import Listing, Record, check_images_exist


def read_json(location: str) -> Listing:
    """Image paths are relative to the file's folder. Optional keys: "split", and "label" (a class name).

    Raises:
        DataError: the file is missing or no list, a row lacks a key (which row, which keys it has), an image is not there.
    """
    path = Path(location)
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    for number, row in enumerate(rows):
        _check_row(row, f"{path}: row {number}")
    check_images_exist((row["image"] for row in rows), path.parent, where=path)
    labels = sorted({row["label"] for row in rows if "label" in row})
    label_ids = {label: i for i, label in enumerate(labels)}
    records = [
        Record(
            key=row["image"],
            path=str(path.parent / row["image"]),
            captions=_captions(row),
            label=label_ids.get(row.get("label", "")),
            split=row.get("split"),
        )
        for row in rows
    ]
    return Listing(_merge_repeated(records), classes=tuple(labels))


def _rows(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; json: wants a file") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    is_lines = path.suffix in {".jsonl", ".ndjson"}
    try:
        content = [json.loads(line) for line in text.split("\n") if line.strip()] if is_lines else json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, list):
        raise DataError(f"{path}: holds {_json_name(content)}, not a list of rows")
    return content


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {_json_name(row)}, not an object")
    keys = ", ".join(row) or "none"
    if "image" not in row:
        raise DataError(f"{where} has no key 'image'; it has: {keys}")
    if "caption" not in row and "captions" not in row:
        raise DataError(f"{where} has neither 'caption' nor 'captions'; it has: {keys}")
    if not isinstance(row["image"], str):
        raise DataError(f"{where}: 'image' is {_json_name(row['image'])}, not a path")
    captions = _captions(row)
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{where}: its captions are not texts: {captions!r:.80}")
    for optional in ("split", "label"):
        if not isinstance(row.get(optional, ""), str):
            raise DataError(f"{where}: '{optional}' is {_json_name(row[optional])}, not a text")


def _captions(row: dict[str, Any]) -> tuple[Any, ...]:
    captions = row.get("captions", row.get("caption"))
    return tuple(captions) if isinstance(captions, list) else (captions,)


def _merge_repeated(records: list[Record]) -> list[Record]:
    """One record an image: rows that repeat an image give it their captions."""
    merged: dict[str, Record] = {}
    for record in records:
        before = merged.get(record.key)
        if before is None:
            merged[record.key] = record
            continue
        label = before.label if record.label is None else record.label
        captions = (*before.captions, *record.captions)
        merged[record.key] = Record(record.key, record.path, captions, label, record.split or before.split)
    return list(merged.values())


def _json_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
