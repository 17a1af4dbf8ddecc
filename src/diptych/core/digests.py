"""Cached checksums of files: a file whose size and modification time are unchanged is not read again."""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

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
        version = os.fsencode(path.absolute()), state.st_size, state.st_mtime_ns
        cached = self._execute("SELECT digest FROM digests WHERE path = ? AND size = ? AND mtime_ns = ?", *version)
        if cached and isinstance(cached[0][0], bytes) and len(cached[0][0]) == 32:
            return cached[0][0]
        digest = bytes.fromhex(sha256_of(path))
        if time.time_ns() - state.st_mtime_ns > _SETTLED_NS:
            self._execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", *version, digest)
            self._num_new += 1
            if self._num_new % _COMMIT_EVERY == 0:
                self._execute("COMMIT")
        return digest

    def close(self) -> None:
        """Write new digests to the disk and close the database."""
        self._execute("COMMIT")
        if self._database is not None:
            self._database.close()
            self._database = None

    def _execute(self, sql: str, *values: bytes | int) -> list[Any]:
        """The rows of a statement; none if the database cannot be used."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                return self._database.execute(sql, values).fetchall()
        return []
