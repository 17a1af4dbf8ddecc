"""Files on s3, gs, http and other protocols of fsspec, and a cache of local copies."""

import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from diptych.core.cache import cache_folder, make_room
from diptych.core.errors import ConfigError, DataError
from diptych.core.files import atomic_write, file_lock
from diptych.core.retry import retry

T = TypeVar("T")

_TRIES = 3
_WAIT_S = 0.5
"""Seconds before the second try; the wait doubles before each further one."""
_NOT_THERE = "no such file, or its server cannot be reached"  # fsspec raises the same error for both.


def is_remote(where: str) -> bool:
    """Whether a location is a URL.

    >>> is_remote("s3://bucket/00000.tar"), is_remote("/data/00000.tar")
    (True, False)
    """
    return "://" in where


def list_remote(pattern: str) -> list[str]:
    """Return the sorted URLs of the remote files that match a glob pattern.

    Raises:
        ConfigError: the protocol needs a package that is not installed.
        DataError: the location cannot be reached, or no file matches.
    """
    try:
        files, path = _fsspec().core.url_to_fs(pattern)
        found = sorted(files.unstrip_protocol(name) for name in files.glob(path))
    except ImportError:
        raise _missing_extra(pattern) from None
    except Exception as error:  # Raised by many libraries: fsspec, cloud clients, HTTP clients.
        raise DataError(f"{pattern}: cannot be listed ({_reason(error)})") from None
    if not found:
        raise DataError(f"{pattern}: no tar matches this pattern")
    return found


def remote_version(url: str) -> str:
    """Return a text that changes when a remote file changes: its size, and its ETag, checksum or time if the server has one.

    Raises:
        ConfigError: the protocol needs a package that is not installed.
        DataError: the file does not exist or cannot be reached.
    """
    try:
        files, path = _fsspec().core.url_to_fs(url)
        meta: dict[str, Any] = files.info(path)
    except ImportError:
        raise _missing_extra(url) from None
    except FileNotFoundError:
        raise DataError(f"{url}: {_NOT_THERE}") from None
    except Exception as error:
        raise DataError(f"{url}: cannot be reached ({_reason(error)})") from None
    values = (meta.get(name) for name in ("size", "ETag", "etag", "mtime", "LastModified", "md5Hash"))
    return " ".join(str(value) for value in values if value is not None)


def read_remote(url: str, *, max_bytes: int) -> bytes:
    """Return the content of a remote file of at most `max_bytes`.

    Raises:
        ConfigError: the protocol needs a package that is not installed.
        DataError: three tries to fetch the file failed, or it has more than `max_bytes`.
    """
    content = _with_retries(url, lambda: _read(url, max_bytes + 1))
    if len(content) > max_bytes:
        raise DataError(f"{url}: is larger than {max_bytes // 2**20} MiB")
    return content


def _fsspec() -> Any:
    import fsspec  # noqa: PLC0415  (the import takes 20 ms, and most commands read no URL)

    return fsspec


def _read(url: str, num_bytes: int) -> bytes:
    with _fsspec().open(url, "rb") as source:
        return bytes(source.read(num_bytes))


class FileCache:
    """Local copies of remote files in a folder of bounded size; the least recently used files are removed first.

    Several processes may share the folder: while one fetches a file, the others wait for it.

    Args:
        folder: the folder; by default `files` in the cache folder.
        max_bytes: maximum size of all copies together.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int) -> None:
        self.folder = folder or cache_folder() / "files"
        self.max_bytes = max_bytes

    def local(self, url: str, version: str = "") -> Path:
        """Return the path of the local copy of a file, which is fetched if necessary.

        Args:
            url: address of the remote file.
            version: a text such as `remote_version` returns; each version has its own copy.

        Raises:
            ConfigError: the protocol needs a package that is not installed.
            DataError: three tries to fetch the file failed, or the copy cannot be written.
        """
        suffix = Path(re.split(r"[?#]", url, maxsplit=1)[0]).suffix  # The query may contain a secret.
        path = self.folder / (sha256(f"{url} {version}".encode()).hexdigest()[:24] + suffix)
        if self._touch(path):
            return path
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(path.with_name(f".{path.name}.lock"), wait_s=math.inf):
                if not self._touch(path):
                    with ExitStack() as size_lock, atomic_write(path) as tmp:
                        _fetch(url, tmp)
                        # Held until the file is renamed, so that two processes do not use the same free space.
                        size_lock.enter_context(file_lock(self.folder / ".room.lock", wait_s=math.inf))
                        make_room(self.folder, "[!.]*", max_bytes=self.max_bytes - tmp.stat().st_size)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot keep {url} ({error.strerror or error})") from None
        return path

    def _touch(self, path: Path) -> bool:
        """Mark the file as just used; returns whether it exists."""
        try:
            os.utime(path)
        except OSError:
            return False
        return True


def _fetch(url: str, path: Path) -> None:
    """Copy a remote file.

    Raises:
        ConfigError: the protocol needs a package that is not installed.
        DataError: three tries failed.
    """

    def copy() -> None:
        try:
            with _fsspec().open(url, "rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, length=2**20)
        except Exception:
            path.unlink(missing_ok=True)
            raise

    _with_retries(url, copy)


def _with_retries(url: str, read: Callable[[], T]) -> T:
    """Call `read` up to three times and return its result.

    Raises:
        ConfigError: the protocol needs a package that is not installed.
        DataError: the file does not exist, or all three tries failed.
    """
    try:
        return retry(
            read,
            attempts=_TRIES,
            is_temporary=lambda error: not isinstance(error, ImportError | FileNotFoundError),
            wait_s=lambda attempt, _: _WAIT_S * 2**attempt,
        )
    except ImportError:
        raise _missing_extra(url) from None
    except FileNotFoundError:
        raise DataError(f"{url}: {_NOT_THERE}") from None
    except Exception as error:  # Raised by many libraries: fsspec, cloud clients, HTTP clients.
        raise DataError(f"{url}: cannot be fetched ({_reason(error)})") from None


def _missing_extra(url: str) -> ConfigError:
    return ConfigError(f"{url.partition('://')[0]}:// needs an extra: pip install 'diptych[remote]'")


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
