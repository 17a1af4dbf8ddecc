"""A common interface to the image files in a folder or in a zip."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from diptych.core.errors import DataError, ImageError
from diptych.core.foreign import is_foreign
from diptych.core.sample import ImageInput
from diptych.data.storage.inputs import is_folder, reads
from diptych.data.storage.oddities import OddityCounter
from diptych.images.decode import IMAGE_SUFFIXES
from diptych.images.formats import remedy

_FOREIGN = "hidden files and files of other programs"


@runtime_checkable
class Tree(Protocol):
    """A collection of image files, identified by their names. Picklable."""

    def names(self, counter: OddityCounter) -> list[str]:
        """Return the sorted paths of the images from the root, with slashes. Skipped files and followed links are counted."""

    def image(self, name: str) -> ImageInput:
        """Return the image of a sample: its path, or its bytes."""

    def size(self, name: str) -> int | None:
        """Return the size of the image file in bytes; None if it is unknown."""


class FolderTree:
    """A folder on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, counter: OddityCounter) -> list[str]:
        """Return the sorted paths of the images from the root; links to folders are followed.

        Raises:
            DataError: a folder cannot be listed.
        """
        return sorted(_Walk(self.root, counter).names())

    def image(self, name: str) -> ImageInput:
        """Return the path of the image."""
        return self.root / name

    def size(self, name: str) -> int | None:
        """Return the size of the file in bytes; None if it cannot be read."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return None


class _Walk:
    """A traversal of a folder. A linked folder is followed once, and never if it contains the link."""

    def __init__(self, root: Path, counter: OddityCounter) -> None:
        self._root, self._counter = root, counter
        self._followed = set[tuple[int, int]]()

    def names(self) -> Iterator[str]:
        """Yield the paths of the images from the root, in any order."""
        waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        for prefix, above in waiting:  # The list grows during the loop.
            folder = self._root / prefix
            reads(folder)
            try:
                state = folder.stat()
                with os.scandir(folder) as found:
                    inside = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
            inner = above | {(state.st_dev, state.st_ino)}
            for entry in inside:
                name, is_inner = prefix + entry.name, is_folder(entry)
                suffix = entry.name[entry.name.rfind(".") :].lower()
                is_picture = not is_inner and suffix in IMAGE_SUFFIXES
                if not (is_inner or is_picture or remedy(suffix)):
                    continue
                if is_foreign(entry.name):
                    self._counter.add(_FOREIGN, "left out", name)
                    continue
                if is_picture:
                    yield name
                elif not is_inner:
                    _count_left_out(self._counter, suffix, name)
                elif not entry.is_symlink() or self._follows(entry, name, inner):
                    waiting.append((f"{name}/", inner))

    def _follows(self, entry: os.DirEntry[str], name: str, above: frozenset[tuple[int, int]]) -> bool:
        state = entry.stat()
        inode = (state.st_dev, state.st_ino)
        if inode in above:
            self._counter.add("links that lead back to a folder above them", "left out", name)
        elif inode in self._followed:
            self._counter.add("links to a folder that another link led to", "left out", name)
        else:
            self._followed.add(inode)
            self._counter.add("links to folders", "followed", name)
            return True
        return False


def _count_left_out(counter: OddityCounter, suffix: str, name: str) -> None:
    """Count an image of an unsupported format."""
    counter.add(f"{suffix} files", f"left out: {remedy(suffix)}", name)


class ZipTree:
    """A zip file. Each process opens it anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None
        """Id of the process that opened the zip, and the open file."""

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_open": None}

    def names(self, counter: OddityCounter) -> list[str]:
        """Return the sorted paths of the images inside the zip.

        Raises:
            DataError: the file is not a zip, or is damaged.
        """
        reads(self.path)
        try:
            found = self._file().namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{self.path}: cannot be read as a zip ({error})") from None
        pictures = set[str]()
        for name in found:  # The name of a folder ends in a slash.
            suffix = PurePosixPath(name).suffix.lower()
            if name.endswith("/") or not (suffix in IMAGE_SUFFIXES or remedy(suffix)):
                continue
            if is_foreign(name):
                counter.add(_FOREIGN, "left out", name)
            elif suffix not in IMAGE_SUFFIXES:
                _count_left_out(counter, suffix, name)
            elif name in pictures:
                counter.add("names that occur repeatedly in the zip", "read from the last entry", name)
            else:
                pictures.add(name)
        return sorted(pictures)

    def image(self, name: str) -> ImageInput:
        """Return the bytes of the image file.

        Raises:
            ImageError: the zip is damaged, encrypted or missing.
        """
        try:
            return self._file().read(name)
        except Exception as error:  # zipfile and its decompressors raise many classes; RuntimeError if it is encrypted.
            raise ImageError(f"{self.path}: {name}: {error}") from None

    def size(self, name: str) -> int | None:
        """Return the uncompressed size of the file in bytes; None if it cannot be read."""
        try:
            return self._file().getinfo(name).file_size
        except (zipfile.BadZipFile, OSError, KeyError):
            return None

    def _file(self) -> zipfile.ZipFile:
        """Return the file opened by this process: a forked process would share the file offset of its parent."""
        process = os.getpid()
        if self._open is None or self._open[0] != process:
            self._open = process, zipfile.ZipFile(self.path)
        return self._open[1]


def open_tree(path: Path) -> Tree:
    """Return the files of a folder or a zip.

    Raises:
        DataError: the path is neither, or does not exist.
    """
    if path.is_dir():
        return FolderTree(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return ZipTree(path)
    raise DataError(f"{path}: " + ("is neither a folder nor a zip" if path.exists() else "no such folder or zip"))
