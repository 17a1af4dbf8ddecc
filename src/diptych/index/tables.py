"""The tables of an index in SQLite, and entries as rows of any database."""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.core.errors import IndexingError
from diptych.index.entry import Entry, Stamp

SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE vectors (digest TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE entries (
    key TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL, modified_ns INTEGER NOT NULL,
    width INTEGER, height INTEGER, taken TEXT, captions TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX entries_by_digest ON entries (digest);
CREATE TABLE broken (
    key TEXT PRIMARY KEY, size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, reason TEXT NOT NULL
) WITHOUT ROWID;
"""
COLUMNS = "key, digest, size, modified_ns, width, height, taken, captions"


def connect(path: Path) -> sqlite3.Connection:
    """A database that survives a crash, and lets readers go on while it is written.

    Raises:
        IndexingError: it cannot be read.
    """
    try:
        database = sqlite3.connect(path, timeout=30, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        raise IndexingError(f"{path.parent}: cannot be read ({error})") from None
    return database


def forget(database: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Drop what is known of these pictures."""
    for table in ("entries", "broken"):
        database.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in keys])


def to_row(entry: Entry) -> tuple[Any, ...]:
    """The values of `COLUMNS`."""
    captions = json.dumps(entry.captions, ensure_ascii=False)
    stamp = entry.stamp
    return entry.key, entry.digest, stamp.size, stamp.modified_ns, entry.width, entry.height, entry.taken, captions


def to_entry(row: Sequence[Any]) -> Entry:
    """From the values of `COLUMNS`."""
    key, digest, size, modified_ns, width, height, taken, captions = row
    return Entry(
        key=key,
        digest=digest,
        stamp=Stamp(size=size, modified_ns=modified_ns),
        width=width,
        height=height,
        taken=taken,
        captions=tuple(json.loads(captions)),
    )
