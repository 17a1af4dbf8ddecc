"""Files below a folder, or inside a zip, read the same way."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol, runtime_checkable

from diptych.core.errors import DataError, ImageError
from diptych.core.sample import ImageInput
from diptych.images.decode import IMAGE_SUFFIXES


@runtime_checkable
class Tree(Protocol):
    """Named files. Picklable."""

    def names(self) -> Iterator[str]:
        """The pictures' paths from the root, with slashes, sorted."""

    def image(self, name: str) -> ImageInput:
        """What a sample holds of a picture: its path, or its bytes."""

    def size(self, name: str) -> int | None:
        """Bytes of the picture's file; None if that cannot be found out."""


class FolderTree:
    """A folder on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> Iterator[str]:
        """The pictures' paths from the root.

        Raises:
            DataError: a folder below cannot be listed.
        """
        found = []
        for folder, folders, files in os.walk(self.root, onerror=_not_listed):
            there = (name for name in (*folders, *files) if Path(name).suffix.lower() in IMAGE_SUFFIXES)
            found += [Path(folder, name).relative_to(self.root).as_posix() for name in there]
        yield from sorted(found)

    def image(self, name: str) -> ImageInput:
        """The path."""
        return self.root / name

    def size(self, name: str) -> int | None:
        """Bytes of the file."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return None


def _not_listed(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from None


class ZipTree:
    """A zip file; each process opens it for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None
        """The process that opened it, and the open file."""

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_open": None}

    def names(self) -> Iterator[str]:
        """The pictures' paths inside the zip.

        Raises:
            DataError: it is no zip, or a damaged one.
        """
        try:
            found = self._file().namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{self.path}: cannot be read as a zip ({error})") from None
        yield from sorted(name for name in found if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES)

    def image(self, name: str) -> ImageInput:
        """The bytes.

        Raises:
            ImageError: the zip is damaged there, or has gone.
        """
        try:
            return self._file().read(name)
        except Exception as error:  # Of zipfile and of four decompressors; a locked file is a RuntimeError.
            raise ImageError(f"{self.path}: {name}: {error}") from None

    def size(self, name: str) -> int | None:
        """Bytes of the file, unpacked."""
        try:
            return self._file().getinfo(name).file_size
        except (zipfile.BadZipFile, OSError, KeyError):
            return None

    def _file(self) -> zipfile.ZipFile:
        """The file, opened by this process: a forked one would share the offset at which its parent reads."""
        process = os.getpid()
        if self._open is None or self._open[0] != process:
            self._open = process, zipfile.ZipFile(self.path)
        return self._open[1]


def open_tree(path: Path) -> Tree:
    """The files of a folder or of a zip.

    Raises:
        DataError: it is neither.
    """
    if path.is_dir():
        return FolderTree(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return ZipTree(path)
    raise DataError(f"{path}: " + ("is neither a folder nor a zip" if path.exists() else "no such folder or zip"))
