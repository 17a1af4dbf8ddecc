"""`flickr30k:DIR` and `flickr8k:DIR`: the Kaggle dumps (images and a table) and Karpathy's split JSON.

Flickr30k's table (`results.csv`) is separated by `|` with spaces around it, and one row of it lacks its second separator;
Flickr8k's (`captions.txt`) is separated by commas. Karpathy's file
(`dataset_*.json`), where present, says which images are train, val and test (Karpathy & Fei-Fei 2015).
"""

import csv
import json
import re
from pathlib import Path

from diptych.core.errors import DataError
from diptych.data.sources.listing import Listing, ListingBuilder

_ROW = re.compile(r"(?P<image>[^|]+)\|\s*(?P<number>\d+)\s*\|?\s*(?P<caption>.*)")


def read_flickr(location: str) -> Listing:
    """Samples of a Flickr dump, keyed by file name, all captions each.

    Raises:
        DataError: the folder is missing or empty, holds no captions, or captions name images that are not there.
    """
    folder = Path(location)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    splits_file = next(iter(sorted(folder.glob("dataset_*.json"))), None)
    tables = (folder / name for name in ("results.csv", "captions.csv", "captions.txt"))
    table = next((path for path in tables if path.is_file()), None)
    if splits_file is None and table is None:
        raise DataError(f"{folder}: holds neither results.csv, captions.txt nor dataset_*.json; a Flickr dump has one")
    captions, splits = _read_karpathy(splits_file) if splits_file else ({}, {})
    if table:
        captions = _read_comma_table(table) if is_flickr8k(table) else _read_table(table)
    builder = ListingBuilder(_image_folder(folder), where=table or folder)
    for name, texts in captions.items():
        builder.add(name, texts, split=splits.get(name))
    return builder.build()


def _read_table(path: Path) -> dict[str, tuple[str, ...]]:
    captions: dict[str, list[str]] = {}
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        row = _ROW.fullmatch(line)
        if row is None:
            raise DataError(f"{path}: line {number} is not 'image| number| caption': {line[:80]!r}")
        captions.setdefault(row["image"].strip(), []).append(row["caption"].strip())
    if not captions:
        raise DataError(f"{path}: holds no captions")
    return {name: tuple(texts) for name, texts in captions.items()}


def is_flickr8k(path: Path) -> bool:
    """Whether a file is Kaggle's table of Flickr8k: a heading `image,caption`, then commas."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline().strip().lower() == "image,caption"


def _read_comma_table(path: Path) -> dict[str, tuple[str, ...]]:
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for row in rows:
            if len(row) != 2:
                raise DataError(f"{path}: line {rows.line_num} is not 'image,caption': {row!r:.80}")
            captions.setdefault(row[0].strip(), []).append(row[1].strip())
    if not captions:
        raise DataError(f"{path}: holds no captions")
    return {name: tuple(texts) for name, texts in captions.items()}


def _read_karpathy(path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        captions = {image["filename"]: tuple(line["raw"].strip() for line in image["sentences"]) for image in images}
        splits = {image["filename"]: str(image["split"]) for image in images}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not Karpathy's split file ({type(error).__name__}: {error})") from None
    return captions, splits


def _image_folder(folder: Path) -> Path:
    for name in ("images", "flickr30k_images", "flickr30k-images", "Images", "Flicker8k_Dataset"):
        if (folder / name).is_dir():
            return folder / name
    return folder
