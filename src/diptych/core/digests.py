"""Cached checksums of files: a file whose size and modification time are unchanged is not read again."""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from diptych.core.cache import cache_folder
from diptych.core.files import sha256_of

_SETTLED_NS = 2_000_000_000
"""A file that changed less than two seconds ago may change again with the same time stamp; its checksum is not cached."""
_COMMIT_EVERY = 1000


class FileDigests:
    """SHA-256 digests of files, cached in a database in the cache folder. If the database cannot be used, every file is read.

    A cached digest is valid while the size and the modification time of the file are unchanged.
    """

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None
        self._num_new = 0
        with suppress(OSError, sqlite3.Error):
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(folder / "digests.sqlite", timeout=5)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest BLOB)"
            )

    def digest(self, path: Path) -> bytes:
        """Return the SHA-256 of the file's content, 32 bytes.

        Raises:
            OSError: the file cannot be read.
        """
        state = path.stat()
        name = os.fsencode(path.absolute())
        cached = self._cached(name, state)
        if cached is not None:
            return cached
        digest = bytes.fromhex(sha256_of(path))
        if time.time_ns() - state.st_mtime_ns > _SETTLED_NS:
            self._store(name, state, digest)
        return digest

    def close(self) -> None:
        """Write new digests to the disk and close the database."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.commit()
            self._database.close()
            self._database = None

    def _cached(self, name: bytes, state: os.stat_result) -> bytes | None:
        if self._database is None:
            return None
        try:
            row = self._database.execute(
                "SELECT digest FROM digests WHERE path = ? AND size = ? AND mtime_ns = ?",
                (name, state.st_size, state.st_mtime_ns),
            ).fetchone()
        except sqlite3.Error:
            return None
        return bytes(row[0]) if row is not None and isinstance(row[0], bytes) and len(row[0]) == 32 else None

    def _store(self, name: bytes, state: os.stat_result, digest: bytes) -> None:
        if self._database is None:
            return
        with suppress(sqlite3.Error):
            self._database.execute(
                "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", (name, state.st_size, state.st_mtime_ns, digest)
            )
            self._num_new += 1
            if self._num_new % _COMMIT_EVERY == 0:
                self._database.commit()
