"""Checksums of files that were computed once: a file of the same size and time is not read again."""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from diptych.core.cache import cache_folder
from diptych.core.files import sha256_of

_SETTLED_NS = 2_000_000_000
"""A file that changed less than two seconds ago may change again without another time; its checksum is not kept."""
_COMMIT_EVERY = 1000


class FileDigests:
    """SHA-256 of files, kept in a database in the cache folder. If the database cannot be used, every file is read.

    The time of a file only says whether a checksum that was kept is still valid.
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
        """The file's SHA-256, 32 bytes.

        Raises:
            OSError: the file cannot be read.
        """
        state = path.stat()
        name = os.fsencode(path.absolute())
        kept = self._kept(name, state)
        if kept is not None:
            return kept
        digest = bytes.fromhex(sha256_of(path))
        if time.time_ns() - state.st_mtime_ns > _SETTLED_NS:
            self._keep(name, state, digest)
        return digest

    def close(self) -> None:
        """Write what is new to the disk."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.commit()
            self._database.close()
            self._database = None

    def _kept(self, name: bytes, state: os.stat_result) -> bytes | None:
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

    def _keep(self, name: bytes, state: os.stat_result, digest: bytes) -> None:
        if self._database is None:
            return
        with suppress(sqlite3.Error):
            self._database.execute(
                "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", (name, state.st_size, state.st_mtime_ns, digest)
            )
            self._num_new += 1
            if self._num_new % _COMMIT_EVERY == 0:
                self._database.commit()
