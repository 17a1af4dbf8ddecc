"""Upgrade an index on disk from an earlier format. No picture is embedded again, and damaged rows do not get a valid hash.

Format 1 gets row hashes, checksums and file stats of caption files. Formats 1 and 2 get a column of perceptual hashes.
"""

import sqlite3

from diptych.index.tables import BLOCKS, COLUMNS, COLUMNS_2, FORMAT, HASHED, insert
from diptych.index.vector_file import VectorFile

UNKNOWN_SIZE = -1
"""Stored size of a caption file if format 1 read the captions. The next addition reads them again."""
NEW_COLUMNS = {2: ("sidecar_size BIGINT", "sidecar_ns BIGINT", "target TEXT"), 3: ("phash BIGINT",)}
"""New columns of the table `entries`, by the format that added them."""
MARK_CAPTIONS = f"UPDATE entries SET sidecar_size = {UNKNOWN_SIZE}, sidecar_ns = 0 WHERE captions <> '[]'"


def upgrade(database: sqlite3.Connection, file: VectorFile) -> None:
    """Upgrade an index in one transaction. Does nothing if another process has already upgraded it.

    Raises:
        sqlite3.Error: the database cannot be written. It is unchanged.
        OSError: a file cannot be read.
        ValueError: the file of vectors is too short.
    """
    with database:
        database.execute("BEGIN IMMEDIATE")
        (found,) = database.execute("SELECT value FROM about WHERE name = 'format'").fetchone()
        old = int(found)
        for number, columns in NEW_COLUMNS.items():
            for column in columns if number > old else ():
                database.execute(f"ALTER TABLE entries ADD COLUMN {column}")
        if old == 1:
            _from_1(database, file)
        elif old == 2:  # A damaged row keeps its wrong hash.
            database.execute(
                f"UPDATE entries SET row_hash = hash_row({COLUMNS}) WHERE row_hash IS hash_row({COLUMNS_2})"
            )
            database.execute(
                f"UPDATE about SET value = '{FORMAT}', row_hash = hash_row(name, '{FORMAT}') WHERE name = 'format'"
            )


def _from_1(database: sqlite3.Connection, file: VectorFile) -> None:
    for table in ("about", "vectors", "entries", "broken"):
        database.execute(f"ALTER TABLE {table} ADD COLUMN row_hash INTEGER")
    database.execute(BLOCKS)
    (num,) = database.execute("SELECT count(*) FROM vectors").fetchone()
    insert(database, "blocks", file.blocks(num))
    database.execute(MARK_CAPTIONS)
    database.execute("UPDATE about SET value = ? WHERE name = 'format'", (str(FORMAT),))
    for table, columns in HASHED.items():
        database.execute(f"UPDATE {table} SET row_hash = hash_row({columns})")
