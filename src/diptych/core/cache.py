"""The cache folder, for data that can be computed or fetched again, and short notes about files in it."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from diptych.core.files import write_text

_MAX_NOTES = 1000
"""If there are more notes, the older half is removed."""
SETTLED_S = 2.0
"""A file that changed fewer seconds ago than this could change again with the same time stamp."""


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/diptych`, or `~/.cache/diptych` if the variable is not set. The folder may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"


def file_stamp(path: Path) -> str:
    """Return the size, mtime, ctime, device and inode of a file as a text, which differs after the file was changed.

    Programs can set the mtime, but not the ctime.

    Raises:
        OSError: the file does not exist.
    """
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_dev}:{status.st_ino}"


def is_settled(path: Path) -> bool:
    """Whether a file was last changed more than two seconds ago, so that a new change would change its stamp.

    An mtime in the future was set by a program and is ignored: setting it also updated the ctime.

    Raises:
        OSError: the file does not exist.
    """
    status, now = path.stat(), time.time()
    modified = status.st_mtime if status.st_mtime <= now else 0.0
    return now - max(modified, status.st_ctime) > SETTLED_S


def settled_stamp(paths: Iterable[Path]) -> str | None:
    """Return a hash of the paths and stamps of several files; None if one is missing or was changed in the last two seconds."""
    digest = sha256()
    try:
        for path in paths:
            if not is_settled(path):
                return None
            digest.update(f"{path.absolute()}\0{file_stamp(path)}\0".encode("utf-8", "surrogateescape"))
    except OSError:
        return None
    return digest.hexdigest()


def recall(key: str) -> str | None:
    """Return the note stored under a key; None if there is none or it cannot be read."""
    try:
        return _note(key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def remember(key: str, note: str) -> None:
    """Store a short note for later processes. The note may be lost: a full or read-only disk does not raise an error."""
    path = _note(key)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, note)
        notes = list(path.parent.iterdir())
        if len(notes) > _MAX_NOTES:
            for old in sorted(notes, key=lambda file: file.stat().st_mtime)[: len(notes) // 2]:
                old.unlink(missing_ok=True)


def make_room(folder: Path, pattern: str, *, max_bytes: int, keep: Path | None = None) -> None:
    """Remove the least recently used files of a folder until the rest have at most `max_bytes`.

    Args:
        folder: the folder.
        pattern: a glob pattern; other files are ignored.
        max_bytes: maximum sum of the sizes of the files.
        keep: a file that is not removed; None if every file may be removed. Open files can be read after their removal.

    Raises:
        OSError: a file cannot be read or removed.
    """
    files = []
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # Another process may be removing files at the same time.
            state = path.stat()
            files.append((state.st_mtime, state.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > max_bytes and path != keep:
            path.unlink(missing_ok=True)


def _note(key: str) -> Path:
    return cache_folder() / "notes" / sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
