"""The tables of an index in SQLite (format 3), and conversion of entries to rows of any database.

Each row has a hash of its values (`row_hash`), because `PRAGMA integrity_check` checks only the structure of a database.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from numpy import ndarray

from diptych.core.errors import IndexingError
from diptych.core.paths import path_kind
from diptych.core.program import command
from diptych.index.entry import Entry, FileStat
from diptych.index.row_counts import drop_counts, keep_counts

FORMAT = 3
"""Format of new indexes. Earlier formats are read and upgraded (`upgrade.py`): format 2 has no perceptual hashes, and format 1
also has no row hashes and no file stats of caption files."""
DATABASE = "index.db"
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL, row_hash INTEGER) WITHOUT ROWID;
CREATE TABLE vectors (digest TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, row_hash INTEGER) WITHOUT ROWID;
CREATE TABLE entries (
    key TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL, modified_ns INTEGER NOT NULL,
    width INTEGER, height INTEGER, taken TEXT, captions TEXT NOT NULL,
    sidecar_size INTEGER, sidecar_ns INTEGER, target TEXT, phash INTEGER, row_hash INTEGER
) WITHOUT ROWID;
CREATE INDEX entries_by_digest ON entries (digest);
CREATE TABLE broken (
    key TEXT PRIMARY KEY, size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, reason TEXT NOT NULL, row_hash INTEGER
) WITHOUT ROWID;
"""
BLOCKS = """
CREATE TABLE blocks (
    first INTEGER PRIMARY KEY, num INTEGER NOT NULL, vectors TEXT NOT NULL, integers TEXT, scales TEXT, row_hash INTEGER
)
"""
_COLUMNS_1 = "key, digest, size, modified_ns, width, height, taken, captions"
COLUMNS_2 = f"{_COLUMNS_1}, sidecar_size, sidecar_ns, target"
COLUMNS = f"{COLUMNS_2}, phash"
COLUMNS_OF_FORMAT = {1: f"{_COLUMNS_1}, NULL, NULL, NULL, NULL", 2: f"{COLUMNS_2}, NULL", 3: COLUMNS}
HASHED = {
    "about": "name, value",
    "vectors": "digest, place",
    "entries": COLUMNS,
    "broken": "key, size, modified_ns, reason",
    "blocks": "first, num, vectors, integers, scales",
}
"""By table, the columns that `row_hash` covers: all other columns."""


def holds_local_index(folder: Path) -> bool:
    """Whether a folder contains an index."""
    return path_kind(folder / DATABASE) == "file"


def hash_row(*values: Any) -> int:
    """A 64-bit hash of the values of a row, as a signed integer.

    >>> hash_row("a.jpg", 3, None) == hash_row("a.jpg", "3", None)
    False
    """
    content = json.dumps(values).encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big", signed=True)


def insert(database: sqlite3.Connection, table: str, rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows with their hashes. `HASHED` lists the columns."""
    columns = HASHED[table]
    placeholders = ", ".join("?" * (columns.count(",") + 2))
    sql = f"INSERT INTO {table} ({columns}, row_hash) VALUES ({placeholders})"
    database.executemany(sql, [(*row, hash_row(*row)) for row in rows])


def total_left_out(stored: str | None) -> dict[str, int]:
    """The total counts by suffix, from the row `left_out` of the table `about`, which is JSON by folder and suffix.

    >>> total_left_out('{"/a": {".heic": 2}, "/b": {".cr2": 1, ".heic": 1}}')
    {'.cr2': 1, '.heic': 3}
    """
    total = Counter[str]()
    for counts in json.loads(stored or "{}").values():
        total.update(counts)
    return dict(sorted(total.items()))


def set_about(database: sqlite3.Connection, **values: str | None) -> None:
    """Replace rows of the table `about`. The value None removes a row."""
    database.executemany("DELETE FROM about WHERE name = ?", [(name,) for name in values])
    insert(database, "about", [(name, value) for name, value in values.items() if value is not None])


def set_phash(database: sqlite3.Connection, phashes: Mapping[str, int]) -> None:
    """Store perceptual hashes by digest. Damaged rows are not changed."""
    sql = (
        f"UPDATE entries SET phash = ?1, row_hash = hash_row({COLUMNS_2}, ?1) "
        f"WHERE digest = ?2 AND row_hash IS hash_row({COLUMNS})"
    )
    database.executemany(sql, [(to_signed(phash), digest) for digest, phash in phashes.items()])


def known_models(about: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the model from the rows of the table `about`. The current name comes first."""
    return (about["model"], *map(str, json.loads(about.get("aliases", "[]"))))


def delete_keys(database: sqlite3.Connection, keys: Sequence[str]) -> int:
    """Remove the entries and the unreadable pictures with these keys, and return the number of entries."""
    rows = [(key,) for key in keys]
    database.executemany("DELETE FROM broken WHERE key = ?", rows)
    return database.executemany("DELETE FROM entries WHERE key = ?", rows).rowcount


def keep_vectors(database: sqlite3.Connection, kept: Int64[ndarray, " N"]) -> None:
    """Remove all vectors except those at the given places, which are sorted, and renumber these from 0 on."""
    drop_counts(database)
    database.execute("CREATE TEMP TABLE kept (place INTEGER PRIMARY KEY, after INTEGER)")
    database.executemany("INSERT INTO kept VALUES (?, ?)", zip(kept.tolist(), range(len(kept)), strict=True))
    database.execute("CREATE TEMP TABLE moved AS SELECT digest, after FROM kept JOIN vectors USING (place)")
    database.execute("DELETE FROM vectors")
    database.execute(  # In the order of the table, so that rows are appended.
        f"INSERT INTO vectors ({HASHED['vectors']}, row_hash) "
        "SELECT digest, after, hash_row(digest, after) FROM moved ORDER BY digest"
    )
    for table in ("moved", "kept"):
        database.execute(f"DROP TABLE temp.{table}")
    keep_counts(database)


def to_row(entry: Entry) -> tuple[Any, ...]:
    """The values of `COLUMNS` of an entry."""
    file = entry.key, entry.digest, entry.stamp.size, entry.stamp.modified_ns
    picture = entry.width, entry.height, entry.taken, json.dumps(entry.captions, ensure_ascii=False)
    sidecar = (None, None) if entry.sidecar is None else (entry.sidecar.size, entry.sidecar.modified_ns)
    phash = None if entry.phash is None else to_signed(entry.phash)
    return *file, *picture, *sidecar, entry.target, phash


def to_signed(phash: int) -> int:
    """An unsigned 64-bit integer as a signed one, which databases store.

    >>> to_signed(2**64 - 1), to_signed(5)
    (-1, 5)
    """
    return phash - 2**64 if phash >= 2**63 else phash


def to_unsigned(stored: int) -> int:
    """The inverse of `to_signed`.

    >>> to_unsigned(-1)
    18446744073709551615
    """
    return stored % 2**64


def to_entry(row: Sequence[Any]) -> Entry:
    """The entry from the values of `COLUMNS`.

    Raises:
        IndexingError: the captions are damaged.
    """
    key, digest, size, modified_ns, width, height, taken, captions, sidecar_size, sidecar_ns, target, phash = row
    try:
        texts = tuple(json.loads(captions))
    except (ValueError, TypeError):
        raise IndexingError(
            f"{key}: its captions are damaged; to find other damage, run: {command('index', 'verify')}"
        ) from None
    return Entry(
        key=key,
        digest=digest,
        stamp=FileStat(size=size, modified_ns=modified_ns),
        width=width,
        height=height,
        taken=taken,
        captions=texts,
        sidecar=None if sidecar_size is None else FileStat(size=sidecar_size, modified_ns=sidecar_ns),
        target=target,
        phash=None if phash is None else to_unsigned(phash),
    )
