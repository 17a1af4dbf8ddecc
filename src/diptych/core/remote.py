"""Files that lie on s3, gs, http or any other place that fsspec knows, and the few of them that are kept on this machine."""

import math
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from diptych.core.cache import cache_folder
from diptych.core.errors import ConfigError, DataError
from diptych.core.files import atomic_write, file_lock

T = TypeVar("T")

_TRIES = 3
_WAIT_S = 0.5
"""Before the second try; twice as long before each further one."""
_NOT_THERE = "no such file, or its server cannot be reached"  # fsspec makes one error of both.


def is_remote(where: str) -> bool:
    """Whether a place is named by a URL.

    >>> is_remote("s3://bucket/00000.tar"), is_remote("/data/00000.tar")
    (True, False)
    """
    return "://" in where


def list_remote(pattern: str) -> list[str]:
    """The URLs that a glob on s3, gs and the like names, sorted.

    Raises:
        ConfigError: the protocol needs a package that is not there.
        DataError: the place cannot be reached, or nothing is called so.
    """
    try:
        files, path = fsspec.core.url_to_fs(pattern)
        found = sorted(files.unstrip_protocol(name) for name in files.glob(path))
    except ImportError:
        raise _missing_extra(pattern) from None
    except Exception as error:  # Of many libraries: fsspec's, the cloud's, the network's.
        raise DataError(f"{pattern}: cannot be listed ({_reason(error)})") from None
    if not found:
        raise DataError(f"{pattern}: no tar is called so")
    return found


def remote_version(url: str) -> str:
    """The size of a file and what else its server says of its state; another text when it has changed.

    Raises:
        ConfigError: the protocol needs a package that is not there.
        DataError: there is no such file, or it cannot be reached.
    """
    try:
        files, path = fsspec.core.url_to_fs(url)
        told: dict[str, Any] = files.info(path)
    except ImportError:
        raise _missing_extra(url) from None
    except FileNotFoundError:
        raise DataError(f"{url}: {_NOT_THERE}") from None
    except Exception as error:
        raise DataError(f"{url}: cannot be reached ({_reason(error)})") from None
    marks = (told.get(name) for name in ("size", "ETag", "etag", "mtime", "LastModified", "md5Hash"))
    return " ".join(str(mark) for mark in marks if mark is not None)


def read_remote(url: str, *, max_bytes: int) -> bytes:
    """The content of a small file.

    Raises:
        ConfigError: the protocol needs a package that is not there.
        DataError: it cannot be fetched, three tries long, or is larger.
    """
    content = _thrice(url, lambda: _read(url, max_bytes + 1))
    if len(content) > max_bytes:
        raise DataError(f"{url}: is larger than {max_bytes // 2**20} MiB")
    return content


def _read(url: str, num_bytes: int) -> bytes:
    with fsspec.open(url, "rb") as source:
        return bytes(source.read(num_bytes))


class FileCache:
    """Copies of remote files in a folder that does not grow beyond a size; what was not read for longest goes first.

    Processes share it: a file that one of them fetches, the others wait for.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int) -> None:
        self.folder = folder or cache_folder() / "files"
        self.max_bytes = max_bytes

    def local(self, url: str, version: str = "") -> Path:
        """The copy of a version on this machine, fetched if it is not there.

        Raises:
            ConfigError: the protocol needs a package that is not there.
            DataError: it cannot be fetched, three tries long, or there is no room for it.
        """
        suffix = Path(re.split(r"[?#]", url, maxsplit=1)[0]).suffix  # What follows may be a secret.
        path = self.folder / (sha256(f"{url} {version}".encode()).hexdigest()[:24] + suffix)
        if self._touch(path):
            return path
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(path.with_name(f".{path.name}.lock"), wait_s=math.inf):
                if not self._touch(path):
                    with ExitStack() as room, atomic_write(path) as tmp:
                        _fetch(url, tmp)
                        # Held until the file has its name, so that two processes do not fill the same room.
                        room.enter_context(file_lock(self.folder / ".room.lock", wait_s=math.inf))
                        self._make_room(tmp.stat().st_size)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot keep {url} ({error.strerror or error})") from None
        return path

    def _touch(self, path: Path) -> bool:
        """Whether the file is there; it counts as just read."""
        try:
            os.utime(path)
        except OSError:
            return False
        return True

    def _make_room(self, coming: int) -> None:
        kept = []
        for path in self.folder.iterdir():
            if not path.name.startswith("."):
                state = path.stat()
                kept.append((state.st_mtime_ns, state.st_size, path))
        total = coming + sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)  # Whoever has it open reads on.
            total -= size


def _fetch(url: str, path: Path) -> None:
    """Copy a remote file.

    Raises:
        ConfigError: the protocol needs a package that is not there.
        DataError: it did not come.
    """

    def copy() -> None:
        try:
            with fsspec.open(url, "rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, length=2**20)
        except Exception:
            path.unlink(missing_ok=True)
            raise

    _thrice(url, copy)


def _thrice(url: str, read: Callable[[], T]) -> T:
    """What reading gives, if not at once, then the second or third time.

    Raises:
        ConfigError: the protocol needs a package that is not there.
        DataError: it did not work.
    """
    for attempt in range(_TRIES):
        try:
            return read()
        except ImportError:
            raise _missing_extra(url) from None
        except FileNotFoundError:
            raise DataError(f"{url}: {_NOT_THERE}") from None
        except Exception as error:  # Of many libraries: fsspec's, the cloud's, the network's.
            if attempt == _TRIES - 1:
                raise DataError(f"{url}: cannot be fetched ({_reason(error)})") from None
            time.sleep(_WAIT_S * 2**attempt)
    raise AssertionError


def _missing_extra(url: str) -> ConfigError:
    return ConfigError(f"{url.partition('://')[0]}:// needs an extra: pip install 'diptych[remote]'")


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
