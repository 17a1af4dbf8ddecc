"""Upgrade of an index on disk from format 1: columns, row hashes and checksums are added; nothing is embedded again."""

import sqlite3

from diptych.index.tables import BLOCKS, FORMAT, HASHED, insert
from diptych.index.vector_file import VectorFile

UNKNOWN_SIZE = -1
"""Size in the sidecar stamp of an entry whose captions were read by format 1: the next addition reads them again."""
NEW_COLUMNS = ("sidecar_size BIGINT", "sidecar_ns BIGINT", "target TEXT")
"""Of the table `entries`."""
MARK_CAPTIONS = f"UPDATE entries SET sidecar_size = {UNKNOWN_SIZE}, sidecar_ns = 0 WHERE captions <> '[]'"


def upgrade(database: sqlite3.Connection, file: VectorFile) -> None:
    """Upgrade an index in one transaction; does nothing if another process has done it meanwhile.

    Raises:
        sqlite3.Error: the database cannot be written; it is as it was.
        OSError: a file cannot be read.
        ValueError: the file of vectors is shorter than the database says.
    """
    with database:
        database.execute("BEGIN IMMEDIATE")
        (found,) = database.execute("SELECT value FROM about WHERE name = 'format'").fetchone()
        if found != "1":
            return
        for column in NEW_COLUMNS:
            database.execute(f"ALTER TABLE entries ADD COLUMN {column}")
        for table in ("about", "vectors", "entries", "broken"):
            database.execute(f"ALTER TABLE {table} ADD COLUMN row_hash INTEGER")
        database.execute(BLOCKS)
        (num,) = database.execute("SELECT count(*) FROM vectors").fetchone()
        insert(database, "blocks", file.blocks(num))
        database.execute(MARK_CAPTIONS)
        database.execute("UPDATE about SET value = ? WHERE name = 'format'", (str(FORMAT),))
        for table, columns in HASHED.items():
            database.execute(f"UPDATE {table} SET row_hash = hash_row({columns})")
