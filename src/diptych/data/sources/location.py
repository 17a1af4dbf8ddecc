"""Parse the location of a source, with options: `PATH?name=value&name=value`."""

import os
from collections.abc import Collection
from pathlib import Path
from urllib.parse import parse_qsl

from diptych.core.errors import DataError, unknown_name


def read_location(location: str, known: Collection[str]) -> tuple[Path, dict[str, str]]:
    """Return the path and the options after its last question mark.

    >>> read_location("captions.csv?caption=title&separator=tab", ["caption", "separator"])
    (PosixPath('captions.csv'), {'caption': 'title', 'separator': 'tab'})

    Raises:
        DataError: an option is unknown (the message names the closest one) or has no value.
    """
    path, question, options = location.rpartition("?")
    if not question or Path(location).exists():  # A file name may contain a question mark.
        return Path(location), {}
    pairs = dict(parse_qsl(options, keep_blank_values=True))
    if not pairs:
        raise DataError(f"{location}: options must follow the question mark, as in {path}?{next(iter(known))}=...")
    for name, value in pairs.items():
        if name not in known:
            raise DataError(f"{path}: {unknown_name('option', name, known)}")
        if not value:
            raise DataError(f"{path}: option '{name}' has no value")
    return Path(path), pairs


def existing_file(path: Path, *, kind: str) -> Path:
    """Return the path of a file, if it exists.

    Raises:
        DataError: the file does not exist, or is a folder.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; {kind}: needs a file")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path


def existing_folder(path: Path, *, kind: str) -> Path:
    """Return the path of a folder, if it exists and can be listed.

    Raises:
        DataError: the folder does not exist, is a file, or cannot be listed.
    """
    if path.is_file():
        raise DataError(f"{path}: is a file; {kind}: needs a folder")
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    return listable(path)


def listable(folder: Path) -> Path:
    """Return the path of a folder, if it can be listed. In other folders, `glob` silently finds nothing.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    return folder
