"""Where Diptych keeps what can be made or fetched again, and notes about files that save reading them again."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from diptych.core.files import write_text

_MAX_NOTES = 1000
"""When there are more, the older half is removed."""
SETTLED_S = 2.0
"""A file that changed less than this long ago could change again without another time stamp."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/diptych`, or `~/.cache/diptych`. It need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"


def file_stamp(path: Path) -> str:
    """Size, times of the last change of content and of metadata, and inode of a file; they differ when the file was changed.

    A program can set the first time, but not the second.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_dev}:{status.st_ino}"


def is_settled(path: Path) -> bool:
    """Whether the last change of a file lies two seconds back, so that another change would give it another stamp.

    A time of the content that lies in the future was set by a program, at the time of the last change of the metadata.

    Raises:
        OSError: there is no such file.
    """
    status, now = path.stat(), time.time()
    modified = status.st_mtime if status.st_mtime <= now else 0.0
    return now - max(modified, status.st_ctime) > SETTLED_S


def settled_stamp(paths: Iterable[Path]) -> str | None:
    """The places and stamps of several files in one hash; None if one of them is missing or not settled."""
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
    """The note under a key; None if there is none or it cannot be read."""
    try:
        return _note(key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def remember(key: str, note: str) -> None:
    """Keep a short note for later processes. It may be lost: a full or read-only disk is no error."""
    path = _note(key)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, note)
        notes = list(path.parent.iterdir())
        if len(notes) > _MAX_NOTES:
            for old in sorted(notes, key=lambda file: file.stat().st_mtime)[: len(notes) // 2]:
                old.unlink(missing_ok=True)


def make_room(folder: Path, pattern: str, *, max_bytes: int, keep: Path) -> None:
    """Remove the files of a folder that were not used for longest, until the others have at most `max_bytes`.

    Args:
        folder: the folder.
        pattern: a glob of the files that count.
        max_bytes: bound on the sum of their sizes.
        keep: a file that is not removed, even if it is larger than that.

    Raises:
        OSError: a file cannot be looked at or removed.
    """
    files = []
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # Another process makes room, too.
            state = path.stat()
            files.append((state.st_mtime, state.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > max_bytes and path != keep:
            path.unlink(missing_ok=True)


def _note(key: str) -> Path:
    return cache_folder() / "notes" / sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
