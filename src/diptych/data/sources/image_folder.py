"""`text-folder:DIR`: a `.txt` next to each image; `image-folder:DIR`: Hugging Face's `imagefolder` with `metadata.jsonl`."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from diptych.core.encodings import decode_text
from diptych.core.errors import DataError, ImageError
from diptych.core.foreign import is_foreign
from diptych.core.program import command
from diptych.data.sources.json_file import read_json
from diptych.data.sources.listing import Listing, ListingBuilder
from diptych.data.sources.location import existing_folder, read_location
from diptych.data.sources.table import read_csv
from diptych.data.storage.inputs import is_folder, looked_up, reads
from diptych.data.storage.oddities import OddityCounter
from diptych.data.storage.tree import FolderTree
from diptych.images.embedded import embedded_captions

_METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTION_SUFFIXES = (".txt", ".caption")
_NUM_LOOKED_AT = 50
EMBEDDED = "embedded"
"""Option value for captions inside the image files."""


def read_text_folder(location: str) -> Listing:
    """Read the images below a folder, with captions from `NAME.txt` or `NAME.caption`.

    Images without a caption are left out and counted. `?captions=embedded` uses the captions inside the image files
    (`images/embedded.py`).

    Raises:
        DataError: the folder does not exist, or none of its images has a caption.
    """
    path, options = read_location(location, ("captions",))
    if options.get("captions", EMBEDDED) != EMBEDDED:
        raise DataError(f"{path}: captions is '{options['captions']}'; it is {EMBEDDED}, or is left out")
    root = existing_folder(path, kind="text-folder")
    builder, oddities = ListingBuilder(root, where=root), OddityCounter()
    num_kept = 0
    for name in FolderTree(root).names(oddities):
        captions = (
            _embedded(root / name, name, oddities) if options else _caption_file_texts(root / name, name, oddities)
        )
        if captions:
            builder.add(name, captions)
            num_kept += 1
        else:
            oddities.add("pictures without a caption", "left out", name)
    if not num_kept:
        raise without_captions(root)
    source = builder.build(check_images=False)
    source.oddities = oddities.oddities()
    return source


def _embedded(image: Path, name: str, oddities: OddityCounter) -> tuple[str, ...]:
    reads(image)
    try:
        return embedded_captions(image)
    except (ImageError, OSError) as error:
        oddities.add("pictures whose metadata cannot be read", "left out", f"{name} ({error})")
        return ()


def without_captions(folder: Path) -> DataError:
    """Return the error for a folder of images without captions or classes."""
    return DataError(
        f"{folder}: holds pictures without captions or classes; put a .txt with the caption next to each, sort them into "
        f"one folder per class, or take the captions inside the files: {folder}?captions={EMBEDDED}. Searching needs neither: "
        + command("index", "add", "INDEX", folder)
    )


def read_image_folder(location: str) -> Listing:
    """Read `metadata.jsonl` or `metadata.csv` with a column `file_name`, in the folder or in its subfolders (splits).

    Raises:
        DataError: there is no such file, or it cannot be read as `json:` or `csv:`.
    """
    root = existing_folder(Path(location), kind="image-folder")
    files = list(_metadata_files(root))
    if not files:
        raise DataError(f"{root}: holds neither {' nor '.join(_METADATA)}, nor do the folders in it")
    builder = ListingBuilder(root, where=root)
    for path in files:
        folder = "" if path.parent == root else path.parent.name
        part = read_json(str(path)) if path.suffix == ".jsonl" else read_csv(str(path))
        for i in range(len(part)):
            label = part.label(i)
            builder.add(
                f"{folder}/{part.key(i)}" if folder else part.key(i),
                () if part.templates else part.captions(i),
                label=None if label is None else part.classes[label],
                split=part.split(i) or folder or None,
            )
    return builder.build(check_images=False)


def is_image_folder(folder: Path) -> bool:
    """Return whether `image-folder:` can read a folder."""
    return any(True for _ in _metadata_files(folder))


def is_text_folder(folder: Path) -> bool:
    """Return whether most of the first 50 images in a folder have a caption file."""
    first = list(islice(FolderTree(folder).names(OddityCounter()), _NUM_LOOKED_AT))
    return 2 * sum(_caption_file(folder / name) is not None for name in first) > len(first)


def has_pictures(folder: Path) -> bool:
    """Return whether a folder or one of its subfolders contains an image."""
    return bool(FolderTree(folder).names(OddityCounter()))


def _metadata_files(root: Path) -> Iterator[Path]:
    reads(root)
    with os.scandir(root) as entries:
        inner = sorted(entry.name for entry in entries if is_folder(entry) and not is_foreign(entry.name))
    for folder in (root, *(root / name for name in inner)):
        reads(folder)
        yield from [folder / name for name in _METADATA if looked_up(folder / name).is_file()][:1]


def _caption_file_texts(image: Path, name: str, oddities: OddityCounter) -> tuple[str, ...]:
    path = _caption_file(image)
    if path is None:
        return ()
    reads(path)
    text, encoding = decode_text(path.read_bytes())
    if encoding != "UTF-8":
        oddities.add("texts that are not UTF-8", f"read as {encoding}", name)
    return (text.strip(),) if text.strip() else ()


def _caption_file(image: Path) -> Path | None:
    paths = (image.with_suffix(spelled) for suffix in _CAPTION_SUFFIXES for spelled in (suffix, suffix.upper()))
    return next((path for path in paths if path.is_file()), None)
