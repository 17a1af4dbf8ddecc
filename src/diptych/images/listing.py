"""List the images in a folder, and the files that were left out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import ImageError
from diptych.core.foreign import is_foreign
from diptych.core.paths import path_kind
from diptych.images.formats import FORMATS, LeftOut, LeftOutCounter


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images in a folder and its subfolders."""

    paths: tuple[Path, ...]
    """Paths of the images, sorted."""
    left_out: tuple[LeftOut, ...]
    """Images of unsupported formats, by suffix."""
    unreadable: tuple[tuple[str, str], ...]
    """(path, reason) of subfolders that cannot be read."""


def list_images(folder: Path) -> Listing:
    """List the images in a folder and its subfolders, without hidden files and files of other programs.

    A folder whose name looks like that of an image (`holiday.jpg`) is read as a folder. Links to folders are not followed.

    Raises:
        ImageError: the folder is missing, cannot be read, or contains no images; the message lists what was left out.
    """
    if path_kind(folder) != "folder":
        raise ImageError(f"{folder}: no such folder")
    errors, counter, found = list[OSError](), LeftOutCounter(), list[Path]()
    for path in _files(folder, errors):
        if path.suffix.lower() in FORMATS:
            found.append(path)
        else:
            counter.add(str(path))
    left_out = tuple(counter.left_out())
    unreadable = [(str(error.filename), f"cannot be read ({error.strerror})") for error in errors]
    if not found:
        others = "".join(f"; left out: {left}" for left in left_out)
        others += "".join(f"; {path}: {reason}" for path, reason in unreadable)
        raise ImageError(f"{folder}: holds no pictures ({', '.join(sorted(FORMATS))}){others}")
    return Listing(paths=tuple(sorted(found)), left_out=left_out, unreadable=tuple(unreadable))


def _files(folder: Path, errors: list[OSError]) -> Iterator[Path]:
    """Yield all files except foreign ones. Errors of unreadable folders are collected."""
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not is_foreign(name))
        yield from (Path(parent, name) for name in sorted(names) if not is_foreign(name))
