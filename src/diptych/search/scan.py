"""The pictures of folders, and what is known of one before it is embedded."""

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from PIL import ExifTags, Image

from diptych.core.errors import IndexingError
from diptych.images.decode import IMAGE_SUFFIXES
from diptych.images.opener import open_image, orientation_of
from diptych.index.entry import Entry, Stamp

_TAKEN = ExifTags.Base.DateTimeOriginal
_TURNED = {5, 6, 7, 8}
"""Orientations in which width and height change places."""


def scan(folders: Sequence[Path]) -> Iterator[tuple[str, Stamp]]:
    """Every picture with its stamp, by absolute path; hidden files and folders are left out, links to folders not followed.

    Raises:
        IndexingError: a folder is not there, or may not be read.
    """
    for folder in folders:
        if not folder.is_dir():
            raise IndexingError(f"{folder}: no such folder")
        yield from _scan(str(folder.resolve()))


def _scan(folder: str) -> Iterator[tuple[str, Stamp]]:
    try:
        with os.scandir(folder) as found:
            inside = sorted(found, key=lambda item: item.name)
    except OSError as error:
        raise IndexingError(f"{folder}: cannot be read ({error.strerror})") from None
    for item in inside:
        if item.name.startswith("."):
            continue
        if item.is_dir(follow_symlinks=False):
            yield from _scan(item.path)
        elif os.path.splitext(item.name)[1].lower() in IMAGE_SUFFIXES and item.is_file():  # noqa: PTH122  (a hundred thousand)
            status = item.stat()
            yield item.path, Stamp(size=status.st_size, modified_ns=status.st_mtime_ns)


def digest_of(content: bytes) -> str:
    """Of a file's content."""
    return blake2b(content, digest_size=16).hexdigest()


def describe_picture(key: str, stamp: Stamp, content: bytes) -> Entry:
    """What the file says of itself: size as it is looked at, when it was taken, and the captions of a `.txt` beside it."""
    width, height, taken = _from_header(content)
    return Entry(
        key=key,
        digest=digest_of(content),
        stamp=stamp,
        width=width,
        height=height,
        taken=taken,
        captions=_captions(Path(key)),
    )


def _from_header(content: bytes) -> tuple[int | None, int | None, str | None]:
    try:
        with open_image(content) as picture:
            width, height = picture.size[::-1] if orientation_of(picture) in _TURNED else picture.size
            taken = _taken(picture)
    except Exception:  # Headers are anybody's; whether the picture can be read shows when it is embedded.
        return None, None, None
    return width, height, _as_time(taken)


def _taken(picture: Image.Image) -> object:
    try:
        return picture.getexif().get_ifd(ExifTags.IFD.Exif).get(_TAKEN)
    except Exception:  # Metadata is not the picture.
        return None


def _as_time(taken: object) -> str | None:
    """`2024:05:01 12:00:00` is how cameras write it."""
    text = str(taken).strip("\x00 ") if taken is not None else ""
    date, _, clock = text.partition("\x00")[0].partition(" ")
    parts = date.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts) or parts[0] == "0000":
        return None
    return f"{'-'.join(parts)} {clock}".strip()


def _captions(picture: Path) -> tuple[str, ...]:
    try:
        text = picture.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(line.strip() for line in text.splitlines() if line.strip())
