"""Locks, atomic writes, checked reads and checksums of files. No other module of the project locks or replaces files.

A reader sees either the old or the new content of a file, never a partial write. After a crash, one of the two is on the disk,
possibly with a temporary file (`TMP_SUFFIX`) next to it.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from diptych.core.errors import BusyError

TMP_SUFFIX = ".tmp"
"""End of the name of a file that is being written; the name also starts with a dot."""

MAX_IMAGE_BYTES = 512 * 2**20
"""Maximum size of an image file, which is read into memory as a whole. The largest images that are decoded have 200 million
pixels (600 MB uncompressed), and encoded files are much smaller."""

_HOLDER_SUFFIX = ".holder"
_CHECKED_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"))
"""`O_NONBLOCK`: without it, opening a FIFO that has no writer blocks. Windows lacks most of these flags."""
_CHILDREN_S = 10.0
"""How long the children of a killed process may hold its lock: PyTorch's workers check for their parent every five seconds."""


@contextmanager
def atomic_write(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield the path of an empty temporary file; when the block ends, flush it to the disk and rename it to `path`.

    If the block raises, the temporary file is removed and `path` stays as it was.

    Args:
        path: the file to create or replace.
        mode: permissions of the new file, which the umask may restrict further; 0o600 for secrets.

    Raises:
        OSError: the file cannot be written.
    """
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TMP_SUFFIX}")
    os.close(os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield tmp
        flush(tmp)
        tmp.replace(path)
    except BaseException:
        with suppress(OSError):
            tmp.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_text(path: Path, text: str, *, errors: str = "strict", mode: int = 0o666) -> None:
    """Create or replace a UTF-8 file atomically (`atomic_write`).

    Raises:
        OSError: the file cannot be written.
        UnicodeEncodeError: the text contains a lone surrogate, and `errors` is "strict".
    """
    with atomic_write(path, mode=mode) as tmp:
        tmp.write_text(text, encoding="utf-8", errors=errors)


def is_tmp(path: Path, of: str = "") -> bool:
    """Whether a path has the name of a temporary file of `atomic_write`, such as a killed process leaves.

    Args:
        path: the path to test.
        of: the name of the file that was being written; empty for any file.

    >>> is_tmp(Path(".config.yaml.0a1b2c3d.tmp"), of="config.yaml"), is_tmp(Path("notes.tmp"))
    (True, False)
    """
    return path.name.startswith(f".{of}." if of else ".") and path.name.endswith(TMP_SUFFIX)


def clear_tmp(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder. Call it only while no process writes there."""
    for path in folder.iterdir():
        if is_tmp(path):
            path.unlink(missing_ok=True)


def replace_folder(tmp: Path, path: Path, *, old: Path) -> None:
    """Rename the folder `tmp` to `path`. An existing folder is first renamed to `old`, which the caller removes.

    If the process dies between the two renames, `restore_folder(old, path)` undoes the first.

    Raises:
        OSError: a folder cannot be renamed.
    """
    if path.exists():
        path.rename(old)
    tmp.rename(path)
    flush(path.parent)


def restore_folder(old: Path, path: Path) -> None:
    """Rename `old` back to `path` if the process died in `replace_folder` before the new folder was in place.

    Raises:
        OSError: the folder cannot be renamed.
    """
    if not path.exists():
        old.rename(path)


def remove_folder(path: Path, *, tmp: Path) -> None:
    """Remove a folder. It is renamed to `tmp` first, so that a crash does not leave a partly deleted folder at `path`."""
    with suppress(OSError):
        path.rename(tmp)
    shutil.rmtree(tmp, ignore_errors=True)


def flush(path: Path) -> None:
    """Call `fsync` on a file or a folder: on return, the file's content or the folder's entries are on the disk.

    Raises:
        OSError: the path cannot be opened, or the disk reports an error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str | Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading; a FIFO, device, socket or folder is rejected without blocking.

    The check is made on the open descriptor, so that the file cannot be replaced between check and use.

    Args:
        path: the file.
        follow_links: if False, a path whose last component is a symbolic link is rejected.

    Raises:
        OSError: the file does not exist, cannot be opened, or is not a regular file; `strerror` gives the reason.
    """
    flags = _CHECKED_READ if follow_links else _CHECKED_READ | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from None
        if error.errno == errno.ENXIO:  # A socket, or a device without a driver.
            raise OSError(errno.ENXIO, "is not a regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | Path, *, max_bytes: int, follow_links: bool = True) -> bytes:
    """Return the content of a regular file (`open_regular`) of at most `max_bytes`; a larger file is not read.

    Raises:
        OSError: the file cannot be opened, is not a regular file, or has more than `max_bytes`; `strerror` gives the reason.
    """
    with open_regular(path, follow_links=follow_links) as file:
        is_larger = os.fstat(file.fileno()).st_size > max_bytes
        content = b"" if is_larger else file.read(max_bytes + 1)  # The file may grow in the meantime.
    if is_larger or len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"has more than {max_bytes:,} bytes", str(path))
    return content


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_lock(
    path: Path, *, wait_s: float, what: Path | None = None, advice: str = "try again when it is done"
) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs. The operating system releases the lock when its holder dies.

    A note next to the lock (`PATH.holder`) records the process, its host and the time of locking. If that process has ended,
    its children may hold the lock for a few more seconds; the function waits for them.

    Args:
        path: the lock file; it is created if it does not exist, and it is not removed.
        wait_s: seconds to wait for another holder; `math.inf` waits until the lock is free.
        what: the path that the lock protects, for messages; by default the folder of the lock.
        advice: the end of the error message: what to do next.

    Raises:
        BusyError: another process still holds the lock after `wait_s` seconds; the message names the process.
        OSError: the lock file cannot be created.
    """
    lock = FileLock(path, timeout=-1 if wait_s == float("inf") else wait_s, poll_interval=0.1, thread_local=False)
    note = path.with_name(path.name + _HOLDER_SUFFIX)
    try:
        lock.acquire()
    except Timeout:
        if not (_has_ended(note) and _acquired(lock, wait_s=_CHILDREN_S)):
            raise BusyError(f"{what or path.parent}: is being written by {_described(note)}; {advice}") from None
    try:
        write_text(
            note, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}) + "\n"
        )
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _acquired(lock: FileLock, *, wait_s: float) -> bool:
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        return False
    return True


class _Holder(NamedTuple):
    host: str
    process: int
    since: str


def _holder(note: Path) -> _Holder | None:
    """Return the holder of a lock according to its note; None if the note cannot be read."""
    try:
        held: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(held["since"])))
        return _Holder(str(held["host"]), int(held["process"]), since)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _has_ended(note: Path) -> bool:
    """Whether the process that took the lock ran on this host and has ended."""
    held = _holder(note)
    return held is not None and held.host == socket.gethostname() and not _is_running(held.process)


def _described(note: Path) -> str:
    """Describe the holder of a lock, for messages."""
    held = _holder(note)
    if held is None:
        return "another process"
    if _has_ended(note):
        return f"what process {held.process} started on {held.host}; the process itself has ended"
    return f"process {held.process} on {held.host} since {held.since}"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
