"""`flickr30k:DIR` and `flickr8k:DIR`: the Kaggle dumps (images and a table) and Karpathy's split JSON.

Without DIR, the dumps are downloaded from Kaggle.

Flickr30k's table (`results.csv`) is separated by `|` with spaces around it, and one of its rows lacks the second separator.
Flickr8k's table (`captions.txt`) is separated by commas. Karpathy's file (`dataset_*.json`), if present, defines the splits
train, val and test (Karpathy & Fei-Fei 2015).
"""

import csv
import json
import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from diptych.core.encodings import decode_text
from diptych.core.errors import DataError, DiptychWarning
from diptych.data.sources.kaggle import fetch_from_kaggle
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.data.sources.location import existing_folder
from diptych.data.storage.oddities import OddityCounter
from diptych.images.decode import IMAGE_SUFFIXES

_ROW = re.compile(r"(?P<image>[^|]+)\|\s*(?P<number>\d+)\s*\|?\s*(?P<caption>.*)")


_TABLES = ("results.csv", "captions.csv", "captions.txt")
_FLICKR30K = "hsankesara/flickr-image-dataset/versions/1"
_FLICKR8K = "adityajn105/flickr8k/versions/1"


def read_flickr30k(location: str) -> Listing:
    """Return Flickr30k from a folder; without a location, it is downloaded from Kaggle.

    Raises:
        ConfigError: the extra for Kaggle is not installed.
        DataError: as for `read_flickr`, or the download fails.
    """
    return read_flickr(Path(location) if location else fetch_from_kaggle(_FLICKR30K, kind="flickr30k"))


def read_flickr8k(location: str) -> Listing:
    """Return Flickr8k from a folder; without a location, it is downloaded from Kaggle.

    Raises:
        ConfigError: the extra for Kaggle is not installed.
        DataError: as for `read_flickr`, or the download fails.
    """
    return read_flickr(Path(location) if location else fetch_from_kaggle(_FLICKR8K, kind="flickr8k"))


def read_flickr(root: Path) -> Listing:
    """Return the samples of a Flickr dump with all their captions; the keys are file names.

    Raises:
        DataError: the folder is missing, contains no captions, or images are missing.
    """
    folder = _dump(root)
    splits_file = _only_one(sorted(folder.glob("dataset_*.json")))
    table = _only_one([*(folder / name for name in _TABLES if (folder / name).is_file()), *_token_files(folder)])
    captions, splits = _read_karpathy(splits_file) if splits_file else ({}, _listed_splits(folder))
    oddities = OddityCounter()
    if table and table.name not in _TABLES:
        captions = _by_image(table, _token_rows(table, oddities))
    elif table:
        captions = _by_image(table, _comma_rows(table) if is_flickr8k(table) else _pipe_rows(table))
    builder = ListingBuilder(_image_folder(folder), where=table or folder)
    for name, texts in captions.items():
        builder.add(name, texts, split=splits.get(name))
    source = builder.build()
    source.oddities = oddities.oddities()
    if table and splits_file:
        _compare(table, captions, splits_file, splits)
    return source


def _only_one(files: list[Path]) -> Path | None:
    """Return the first file, or None; warn if there are several."""
    if len(files) > 1:
        others = ", ".join(path.name for path in files[1:])
        text = f"{files[0].parent}: holds several files of one kind; {files[0].name} is read, and not {others}"
        warnings.warn(text, DiptychWarning, stacklevel=4)
    return files[0] if files else None


def _compare(table: Path, captions: Collection[str], splits_file: Path, splits: Collection[str]) -> None:
    """Warn if the two files do not name the same images."""
    differences = []
    for name, lacking, what in (
        (splits_file.name, set(splits) - set(captions), "are left out because they have no captions"),
        (table.name, set(captions) - set(splits), "are put into a split by their keys"),
    ):
        if lacking:
            differences.append(f"{len(lacking)} images that {name} alone names {what} (the first: {min(lacking)})")
    if differences:
        warnings.warn(f"{table.parent}: {'; '.join(differences)}", DiptychWarning, stacklevel=4)


def _dump(root: Path) -> Path:
    """Return the folder with the captions: the given one, or the only one up to two levels below it."""
    level = [existing_folder(root, kind="flickr30k")]
    for _ in range(3):
        found = [folder for folder in level if _has_captions(folder)]
        if len(found) > 1:
            raise DataError(f"{root}: several folders hold captions; name one: {', '.join(map(str, found))}")
        if found:
            return found[0]
        level = sorted(entry for folder in level for entry in folder.iterdir() if entry.is_dir())
    raise DataError(f"{root}: holds neither results.csv, captions.txt nor dataset_*.json; a Flickr dump has one")


def _has_captions(folder: Path) -> bool:
    has_table = any((folder / name).is_file() for name in _TABLES) or bool(_token_files(folder))
    return has_table or any(True for _ in folder.glob("dataset_*.json"))


def has_tokens(folder: Path) -> bool:
    """Return whether a folder or a subfolder has the authors' captions: `Flickr8k.token.txt`, `results_20130124.token`."""
    return any(_token_files(path) for path in (folder, *(entry for entry in folder.iterdir() if entry.is_dir())))


def _token_files(folder: Path) -> list[Path]:
    """Return the caption files of the authors, without Flickr8k's lemmatized captions."""
    found = (*folder.glob("*.token"), *folder.glob("*.token.txt"))
    return sorted(path for path in found if ".lemma." not in path.name and not path.name.startswith("."))


def _by_image(path: Path, rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the captions of each image from (image name, caption) pairs, one for each row of a file."""
    captions: dict[str, list[str]] = {}
    for name, caption in rows:
        captions.setdefault(name, []).append(caption.strip())
    if not captions:
        raise DataError(f"{path}: holds no captions")
    return captions


def _token_rows(path: Path, oddities: OddityCounter) -> Iterator[tuple[str, str]]:
    text, _ = decode_text(path.read_bytes())
    for number, line in enumerate(text.split("\n"), start=1):
        image, tab, caption = line.rstrip("\r").partition("\t")
        name, sign, _ = image.rpartition("#")
        if not line.strip():
            continue
        if not tab or not sign:
            raise DataError(f"{path}: line {number} is not 'image#number<TAB>caption': {line[:80]!r}")
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            yield name, caption
        else:  # Flickr8k lists 2258277193_586949ec62.jpg.1, which does not exist.
            oddities.add("captions without a valid image name", "left out", name)


def _listed_splits(folder: Path) -> dict[str, str]:
    """Return the split by image name, from Flickr8k's lists (`Flickr_8k.trainImages.txt` and so on)."""
    lists = ((path, re.fullmatch(r".*[._](\w+)Images\.txt", path.name)) for path in sorted(folder.glob("*Images.txt")))
    return {
        name.strip(): found[1]
        for path, found in lists
        if found
        for name in decode_text(path.read_bytes())[0].splitlines()
    }


def _pipe_rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        row = _ROW.fullmatch(line)
        if row is None:
            raise DataError(f"{path}: line {number} is not 'image| number| caption': {line[:80]!r}")
        yield row["image"].strip(), row["caption"]


def is_flickr8k(path: Path) -> bool:
    """Return whether a file is a comma-separated table from Kaggle: `image,caption`, optionally with a number in between."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        heading = [name.strip() for name in file.readline().lower().split(",")]
    return len(heading) in {2, 3} and heading[0] in {"image", "image_name"} and heading[-1] in {"caption", "comment"}


def _comma_rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            heading = next(rows)
            for row in rows:
                if len(row) != len(heading):
                    raise DataError(f"{path}: line {rows.line_num} is not '{','.join(heading)}': {row!r:.80}")
                yield row[0].strip(), row[-1]
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8")


def _read_karpathy(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        names = [
            f"{image['filepath']}/{image['filename']}" if "filepath" in image else image["filename"] for image in images
        ]
        texts = [[line["raw"].strip() for line in image["sentences"]] for image in images]
        captions = dict(zip(names, texts, strict=True))
        splits = {name: str(image["split"]) for name, image in zip(names, images, strict=True)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is not Karpathy's split file ({type(error).__name__}: {error})") from None
    return captions, splits


def _image_folder(folder: Path) -> Path:
    # The authors distribute their captions in a separate folder.
    bases = (folder, folder.parent) if _token_files(folder) else (folder,)
    for base in bases:
        for name in ("images", "flickr30k_images", "flickr30k-images", "Images", "Flicker8k_Dataset"):
            for found in (base / name / name, base / name):  # Kaggle's Flickr30k nests the folder in itself.
                if found.is_dir():
                    return found
    return folder
