"""A local or remote tar: its index, and the bytes of its members."""

import os
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from diptych.core.errors import DataError, ImageError
from diptych.core.remote import FileCache, is_remote, remote_version
from diptych.data.storage.tar_index import TarIndex, remote_tar_index, tar_index

_MAX_OPEN = 64


@runtime_checkable
class Tar(Protocol):
    """A tar whose members are read by offset. Picklable."""

    name: str
    """Path or URL."""

    def index(self) -> TarIndex:
        """Return the index of the tar."""

    def open(self) -> int:
        """Open the tar and return a file descriptor.

        Raises:
            OSError: the file cannot be opened.
            DataError: the tar cannot be fetched.
        """


class LocalTar:
    """A tar on this machine."""

    def __init__(self, path: Path, *, lines: bool = False) -> None:
        self.name = str(path)
        self.lines = lines

    def index(self) -> TarIndex:
        """Return the stored index, or create it."""
        return tar_index(Path(self.name), lines=self.lines)

    def open(self) -> int:
        """Open the tar and return a file descriptor."""
        return os.open(self.name, os.O_RDONLY)


class RemoteTar:
    """A remote tar, which is copied into the cache when it is read."""

    def __init__(self, url: str, cache: FileCache, *, lines: bool = False) -> None:
        self.name = url
        self.lines = lines
        self.cache = cache
        self.version = ""

    def index(self) -> TarIndex:
        """Return the cached index, or create it from the tar."""
        self.version = remote_version(self.name)
        fetch = partial(self.cache.local, self.name, self.version)
        return remote_tar_index(self.name, self.version, fetch, lines=self.lines)

    def open(self) -> int:
        """Open the local copy and return a file descriptor, which stays valid if the copy is evicted from the cache."""
        for _ in range(3):
            try:
                return os.open(self.cache.local(self.name, self.version), os.O_RDONLY)
            except FileNotFoundError:  # Another process evicted it just now.
                continue
        raise DataError(
            f"{self.name}: its copy was evicted from {self.cache.folder}, which is too small for all readers"
        )


class TarReader:
    """Reads bytes from tars by offset. Each process opens its own files; the most recently opened ones stay open."""

    def __init__(self, tars: list[Tar]) -> None:
        self.tars = tars
        self._open: OrderedDict[int, int] = OrderedDict()
        # An evicted copy takes disk space while it is open.
        self._max_open = 4 if any(is_remote(tar.name) for tar in tars) else _MAX_OPEN

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of tar `number`, starting at `offset`.

        Raises:
            ImageError: the tar cannot be read, or is too short.
        """
        try:
            descriptor = self._open.get(number)
            if descriptor is None:
                descriptor = self._open_one(number)
            content = os.pread(descriptor, length, offset)
        except OSError as error:
            raise ImageError(f"{self.tars[number].name}: cannot be read ({error.strerror})") from None
        except DataError as error:
            raise ImageError(str(error)) from None
        if len(content) < length:
            raise ImageError(f"{self.tars[number].name}: ends before byte {offset + length}")
        return content

    def _open_one(self, number: int) -> int:
        while len(self._open) >= self._max_open:
            os.close(self._open.popitem(last=False)[1])
        descriptor = self._open[number] = self.tars[number].open()
        return descriptor
