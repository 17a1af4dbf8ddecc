"""Scan folders for pictures, and read their metadata."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from PIL import ExifTags

from diptych.core.encodings import decode_text
from diptych.core.errors import IndexingError
from diptych.core.files import MAX_IMAGE_BYTES, read_regular
from diptych.core.foreign import is_foreign
from diptych.core.lists import check_list
from diptych.core.paths import path_kind
from diptych.images.decode import IMAGE_SUFFIXES
from diptych.images.formats import LeftOutCounter
from diptych.images.opener import open_image, upright_size
from diptych.index.entry import Entry, FileStat

_TAKEN = ExifTags.Base.DateTimeOriginal
_MAX_SIDECAR_BYTES = 2**20
"""Size limit of a sidecar; captions are a few lines of text."""
_CLOCK = re.compile("(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sidecar:
    """A text file with the captions of a picture next to it: `a.txt` for `a.jpg`."""

    path: str
    """Its path with all symbolic links resolved."""
    stamp: FileStat
    """Its size and modification time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannedFile:
    """A picture that a scan found."""

    key: str
    """The absolute path under which it was found."""
    stamp: FileStat
    """Its size and modification time."""
    target: str | None = None
    """Its path with all symbolic links resolved, if that is not `key`."""
    sidecar: Sidecar | None = None
    """The text file with its captions; None if there is none."""

    @property
    def path(self) -> str:
        """The path without symbolic links, from which the file is read."""
        return self.target or self.key


@dataclass(kw_only=True)
class Omissions:
    """What a scan left out."""

    links: int = 0
    """Symbolic links to pictures, captions and folders outside the scanned folder."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of files and subfolders."""
    unread_folders: list[str] = field(default_factory=list)
    """The folders among them. Whether their pictures still exist is unknown."""
    unread_captions: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of text files next to pictures that cannot be read or are not regular files."""
    hidden: int = 0
    """Hidden pictures and folders, and those of other programs (`core/foreign.py`)."""
    excluded: int = 0
    """Pictures and folders that match a pattern of `exclude`."""
    formats: LeftOutCounter = field(default_factory=LeftOutCounter)
    """Pictures of unsupported formats."""


def scan(
    folders: Sequence[Path],
    *,
    follow_links: bool = False,
    exclude: Sequence[str] = (),
    omissions: Omissions | None = None,
) -> Iterator[ScannedFile]:
    """Yield the pictures in folders and their subfolders, sorted by name in each folder.

    Hidden files and folders and those of other programs (`core/foreign.py`) are left out.

    Args:
        folders: the folders to scan.
        follow_links: whether to follow symbolic links to folders, and links to files outside the scanned folder. Each folder is
            scanned once, so links cannot cause a loop. By default, only links to files inside the folder are followed.
        exclude: patterns of names (`*.thumb.jpg`, `@eaDir`) or, with a slash, of paths below the folder (`2019/*/raw`). Files
            and folders that match one are left out. `*` matches any characters, also slashes, and `?` one.
        omissions: filled with what was left out.

    Raises:
        IndexingError: a folder does not exist or cannot be read. Subfolders that cannot be read are left out.
    """
    check_list(folders, "folders")
    for folder in folders:
        if path_kind(folder) != "folder":
            raise IndexingError(f"{folder}: no such folder")
        yield from _Scanner(str(folder.resolve()), follow_links, exclude, omissions or Omissions()).scan()


class _Scanner:
    """Scans a folder: first its own subfolders, then the folders that symbolic links refer to."""

    def __init__(self, root: str, follow_links: bool, exclude: Sequence[str], omissions: Omissions) -> None:
        self._root, self._follow_links, self._omissions = root, follow_links, omissions
        omissions.formats.counts[root].clear()  # The folder counts as scanned, even if nothing is left out.
        self._linked = [(root, root)]
        self._scanned = set[str]()
        self._excluded_names = [pattern for pattern in exclude if "/" not in pattern]
        self._excluded_paths = [pattern.strip("/") for pattern in exclude if "/" in pattern]

    def scan(self) -> Iterator[ScannedFile]:
        """Scan the folder, then each linked folder that was not scanned before."""
        for path, real in self._linked:  # The list grows during the iteration.
            yield from self._folder(path, real)

    def _folder(self, path: str, real: str) -> Iterator[ScannedFile]:
        """Scan a folder; `real` is its path with all symbolic links resolved."""
        if real in self._scanned:
            return
        self._scanned.add(real)
        items = self._list_folder(path)
        texts = {item.name: item for item in items if item.name.endswith(".txt")}
        sidecars: dict[str, Sidecar | None] = {}
        for item in items:
            if self._is_left_out(item):
                continue
            folder = _folder_kind(item)
            if folder == "folder":
                yield from self._folder(item.path, os.path.join(real, item.name))  # noqa: PTH118  (a hundred thousand)
            elif folder == "link":
                self._link_to_folder(item)
            else:
                name, suffix = os.path.splitext(item.name)  # noqa: PTH122
                if suffix.lower() not in IMAGE_SUFFIXES:
                    self._omissions.formats.add(item.path, folder=self._root)
                    continue
                picture = self._picture(item, real)
                if picture is None:
                    continue
                text = f"{name}.txt"
                if text in texts and text not in sidecars:
                    sidecars[text] = self._sidecar(texts[text], real)
                key, stamp, target = picture
                yield ScannedFile(key=key, stamp=stamp, target=target, sidecar=sidecars.get(text))

    def _list_folder(self, path: str) -> list[os.DirEntry[str]]:
        """The items of a folder, sorted by name; empty for a subfolder that cannot be read, which is recorded."""
        try:
            with os.scandir(path) as found:
                return sorted(found, key=lambda item: item.name)
        except (FileNotFoundError, NotADirectoryError):
            if path == self._root:
                raise IndexingError(f"{path}: no such folder") from None
            return []  # It was removed after its parent was listed.
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            if path == self._root:
                raise IndexingError(f"{path}: {reason}") from None
            self._omissions.unreadable.append((path, reason))
            self._omissions.unread_folders.append(path)
            return []

    def _is_left_out(self, item: os.DirEntry[str]) -> bool:
        """Whether a file or folder is hidden, of another program, or excluded. Such pictures and folders are counted."""
        is_hidden = is_foreign(item.name)
        if not (is_hidden or self._is_excluded(item)):
            return False
        suffix = os.path.splitext(item.name)[1].lower()  # noqa: PTH122
        if suffix in IMAGE_SUFFIXES or _folder_kind(item):
            self._omissions.hidden += is_hidden
            self._omissions.excluded += not is_hidden
        return True

    def _is_excluded(self, item: os.DirEntry[str]) -> bool:
        if any(fnmatchcase(item.name, pattern) for pattern in self._excluded_names):
            return True
        inner = os.path.relpath(item.path, self._root) if self._excluded_paths else ""
        return any(fnmatchcase(inner, pattern) for pattern in self._excluded_paths)

    def _link_to_folder(self, item: os.DirEntry[str]) -> None:
        target = os.path.realpath(item.path)
        if self._follow_links:
            self._linked.append((item.path, target))
        elif not self._is_inside(target):
            self._omissions.links += 1

    def _picture(self, item: os.DirEntry[str], folder: str) -> tuple[str, FileStat, str | None] | None:
        try:
            path = self._resolved(item, folder)
            if path is None:
                return None
            stamp = _file_stat(item)
            if not item.is_file():
                raise OSError(errno.EINVAL, "is not a regular file")
            return item.path, stamp, None if path == item.path else path
        except FileNotFoundError:  # Removed after the folder was listed, or a broken link.
            return None
        except OSError as error:
            self._omissions.unreadable.append((item.path, f"cannot be read ({error.strerror})"))
            return None

    def _sidecar(self, item: os.DirEntry[str], folder: str) -> Sidecar | None:
        try:
            if item.is_file():
                path = self._resolved(item, folder)
                return None if path is None else Sidecar(path=path, stamp=_file_stat(item))
            if item.is_dir() or item.is_symlink():  # Broken links are left out, like those of pictures.
                return None
            reason = "is not a regular file"
        except FileNotFoundError:  # Removed since the folder was listed.
            return None
        except OSError as error:
            reason = error.strerror or str(error)
        self._omissions.unread_captions.append((item.path, f"cannot be read ({reason})"))
        return None

    def _resolved(self, item: os.DirEntry[str], folder: str) -> str | None:
        """The path of a file with all links resolved. None for a link that is not followed, which is counted."""
        if not item.is_symlink():
            return os.path.join(folder, item.name)  # noqa: PTH118  (a hundred thousand)
        target = os.path.realpath(item.path)
        if self._follow_links or self._is_inside(target):
            return target
        self._omissions.links += 1
        return None

    def _is_inside(self, target: str) -> bool:
        return f"{target}/".startswith(f"{self._root.rstrip('/')}/")


def _folder_kind(item: os.DirEntry[str]) -> Literal["folder", "link"] | None:
    """Whether an item is a folder or a link to one; None for others. Some file systems need a lookup, which may fail."""
    try:
        return None if not item.is_dir() else "link" if item.is_symlink() else "folder"
    except OSError:  # For example, a link to itself. `_picture` reports other errors.
        return None


def _file_stat(item: os.DirEntry[str]) -> FileStat:
    """Size and modification time of a file. Times that exceed 64 bits (after the year 2262) are clipped."""
    status = item.stat()
    return FileStat(size=status.st_size, modified_ns=min(max(status.st_mtime_ns, -(2**63)), 2**63 - 1))


def read_picture(file: ScannedFile) -> bytes:
    """The content of a picture's file.

    Raises:
        OSError: the file cannot be read, is not a regular file, is too large, or grew since the scan. `strerror` is the reason.
    """
    if file.stamp.size > MAX_IMAGE_BYTES:
        raise OSError(errno.EFBIG, f"has more than {MAX_IMAGE_BYTES:,} bytes", file.path)
    try:
        return read_regular(file.path, max_bytes=file.stamp.size, follow_links=False)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise OSError(errno.EFBIG, "grew while it was indexed; the next addition reads it", file.path) from None


def read_captions(sidecar: Sidecar | None) -> tuple[str, ...]:
    """The caption lines of a sidecar without empty ones; () if `sidecar` is None.

    The encoding is UTF-8, UTF-16 with a byte order mark, or otherwise Windows-1252.

    Raises:
        OSError: the file cannot be read, is not a regular file, or has more than 1 MiB. `strerror` is the reason.
    """
    if sidecar is None:
        return ()
    content = read_regular(sidecar.path, max_bytes=_MAX_SIDECAR_BYTES, follow_links=False)
    text, _ = decode_text(content)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def digest_of(content: bytes) -> str:
    """The digest of the content of a file, 32 hexadecimal digits."""
    return blake2b(content, digest_size=16).hexdigest()


def describe_picture(file: ScannedFile, content: bytes, captions: tuple[str, ...]) -> Entry:
    """The entry of a picture. The upright size and the time of exposure come from the header of the file."""
    width, height, taken = _from_header(content)
    return Entry(
        key=file.key,
        digest=digest_of(content),
        stamp=file.stamp,
        width=width,
        height=height,
        taken=taken,
        captions=captions,
        sidecar=None if file.sidecar is None else file.sidecar.stamp,
        target=file.target,
    )


def _from_header(content: bytes) -> tuple[int | None, int | None, str | None]:
    taken = None
    try:
        with open_image(content) as picture:
            width, height = upright_size(picture)
            with suppress(Exception):  # Damaged metadata does not prevent decoding.
                taken = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(_TAKEN)
    except Exception:  # Headers may be arbitrary; decoding reports whether the picture is readable.
        return None, None, None
    return width, height, _parse_exif_time(taken)


def _parse_exif_time(taken: object) -> str | None:
    """`2024-05-01 12:00:00` for the EXIF time `2024:05:01 12:00:00`; only the date if the time of day is invalid."""
    text = str(taken).strip("\x00 ") if taken is not None else ""
    date, _, clock = text.partition("\x00")[0].partition(" ")
    try:
        day = datetime.strptime(date, "%Y:%m:%d").date().isoformat()
    except ValueError:
        return None
    return f"{day} {clock}" if _CLOCK.fullmatch(clock) else day
