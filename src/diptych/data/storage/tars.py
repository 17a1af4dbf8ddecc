"""One tar, here or elsewhere: its index, and the bytes of its members."""

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
    """A tar whose members are read by their place. Picklable."""

    name: str
    """Path or URL."""

    def index(self) -> TarIndex:
        """What lies where."""

    def open(self) -> int:
        """A descriptor to read it by.

        Raises:
            OSError: it has gone.
            DataError: it cannot be fetched.
        """


class LocalTar:
    """A tar on this machine."""

    def __init__(self, path: Path, *, lines: bool = False) -> None:
        self.name = str(path)
        self.lines = lines

    def index(self) -> TarIndex:
        """From beside the tar, or made."""
        return tar_index(Path(self.name), lines=self.lines)

    def open(self) -> int:
        """A descriptor to read it by."""
        return os.open(self.name, os.O_RDONLY)


class RemoteTar:
    """A tar elsewhere, which is copied into the cache when it is read."""

    def __init__(self, url: str, cache: FileCache, *, lines: bool = False) -> None:
        self.name = url
        self.lines = lines
        self.cache = cache
        self.version = ""

    def index(self) -> TarIndex:
        """From the cache, or made from the tar."""
        self.version = remote_version(self.name)
        fetch = partial(self.cache.local, self.name, self.version)
        return remote_tar_index(self.name, self.version, fetch, lines=self.lines)

    def open(self) -> int:
        """A descriptor to read the copy by; it stays good when the copy is thrown out."""
        for _ in range(3):
            try:
                return os.open(self.cache.local(self.name, self.version), os.O_RDONLY)
            except FileNotFoundError:  # Thrown out by another process, just now.
                continue
        raise DataError(
            f"{self.name}: its copy does not stay in {self.cache.folder}, which is too small for all readers"
        )


class TarReader:
    """Bytes by tar and place. Each process opens the tars it reads for itself, the last few stay open."""

    def __init__(self, tars: list[Tar]) -> None:
        self.tars = tars
        self._open: OrderedDict[int, int] = OrderedDict()
        # A copy that was thrown out of the cache takes room for as long as it is open.
        self._max_open = 4 if any(is_remote(tar.name) for tar in tars) else _MAX_OPEN

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """So many bytes of a tar, from an offset on.

        Raises:
            ImageError: the tar has gone, or ends before.
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
