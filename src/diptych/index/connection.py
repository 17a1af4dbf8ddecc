"""Connections to `index.db`, which are read-only if its folder cannot be written.

To read a database in WAL mode, SQLite must write files next to it, unless another process has it open. If that is not
possible, the database is opened as `immutable`, without locks. If its log (`-wal`) has changes, both files are copied to a
temporary folder and read there. These connections do not see later changes: they are current only while the files do not
change.
"""

import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from diptych.core.errors import IndexingError
from diptych.index.tables import hash_row

_TRIES = 20
"""Maximum number of attempts to open a database that changes at the same time."""
_FileVersion: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Connection:
    """An open database and the file that it was opened from."""

    path: Path
    database: sqlite3.Connection
    version: _FileVersion
    """Identifies the file, and its content if the connection is frozen."""
    is_frozen: bool = False
    """Whether the connection does not see changes made after it was opened."""
    copy: "tempfile.TemporaryDirectory[str] | None" = None
    """The folder of the copied files; None if the original file is open."""

    def is_current(self) -> bool:
        """Whether the path still leads to the opened file and, for a frozen connection, the file is unchanged."""
        try:
            return _file_version(self.path, is_frozen=self.is_frozen) == self.version
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection, and remove the copied files."""
        self.database.close()
        if self.copy is not None:
            self.copy.cleanup()


def connect(path: Path) -> Connection:
    """Open a database in WAL mode, which is crash-safe and can be read during a write; read-only if it cannot be written.

    Raises:
        IndexingError: the database cannot be read.
    """
    try:
        for _ in range(_TRIES):
            connection = _connect(path)
            if connection.is_current():
                return connection
            connection.close()  # The file was replaced, or a frozen file changed.
    except (sqlite3.Error, OSError, UnicodeError) as error:
        raise IndexingError(f"{path.parent}: cannot be read ({error})") from None
    raise IndexingError(f"{path.parent}: cannot be read (it keeps changing, and its folder cannot be written)")


def _connect(path: Path) -> Connection:
    version = _file_version(path)
    try:
        return Connection(path, _open(f"{path.absolute().as_uri()}?mode=rw"), version)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            raise
        try:
            return _connect_read_only(path)
        except sqlite3.OperationalError:
            raise error from None


def _connect_read_only(path: Path) -> Connection:
    address, version = path.absolute().as_uri(), _file_version(path)
    try:  # This works, and shows changes, while another process has the database open.
        return Connection(path, _open(f"{address}?mode=ro"), version)
    except sqlite3.OperationalError:
        version = _file_version(path, is_frozen=True)
    if not _log_size(path):
        return Connection(path, _open(f"{address}?immutable=1"), version, is_frozen=True)
    copy = tempfile.TemporaryDirectory(prefix="diptych-index-")
    try:
        for name in (path.name, _log(path).name):
            shutil.copyfile(path.with_name(name), Path(copy.name) / name)
        copied = _open((Path(copy.name) / path.name).as_uri())
    except BaseException:
        copy.cleanup()
        raise
    return Connection(path, copied, version, is_frozen=True, copy=copy)


def _open(address: str) -> sqlite3.Connection:
    database = sqlite3.connect(address, uri=True, timeout=30, check_same_thread=False)
    try:
        if "immutable" not in address and "mode=ro" not in address:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
        if "mode=rw" not in address:
            database.execute("PRAGMA query_only = ON")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("SELECT 1 FROM sqlite_master").fetchall()
        database.create_function("hash_row", -1, hash_row, deterministic=True)
    except BaseException:
        database.close()
        raise
    return database


def _file_version(path: Path, *, is_frozen: bool = False) -> _FileVersion:
    """Device and inode; for a frozen connection also sizes and times, which change with the database and its log."""
    stat = path.stat()
    identity = (stat.st_dev, stat.st_ino)
    if not is_frozen:
        return identity
    log = _log(path).stat() if _log_size(path) else None
    changes = (stat.st_size, stat.st_mtime_ns)
    return (*identity, *changes, *(() if log is None else (log.st_ino, log.st_size, log.st_mtime_ns)))


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _log_size(path: Path) -> int:
    try:
        return _log(path).stat().st_size
    except FileNotFoundError:
        return 0
