"""Checksums of an index on disk: of blocks of rows in its files, and of the rows in its database.

The blocks of an addition are stored in the same transaction as its vectors and never change. An addition therefore does not
read older vectors, and never computes a valid checksum for damaged ones. Shapes: N vectors, E embedding.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple

from numpy import ndarray

from diptych.index.tables import COLUMNS_2, DATABASE, HASHED

_BLOCK_BYTES = 1 << 20
"""Maximum size of the vectors of a block."""


class Block(NamedTuple):
    """Checksums of `num` rows from row `first` on; a row of the table `blocks`."""

    first: int
    num: int
    vectors: str
    integers: str | None
    """Checksum of the integers of the codes; None if the rows have no codes."""
    scales: str | None

    @property
    def rows(self) -> slice:
        """The rows of the block."""
        return slice(self.first, self.first + self.num)


def hash_block(rows: ndarray) -> str:
    """The checksum of the bytes of an array, as 32 hexadecimal digits."""
    return blake2b(rows.tobytes(), digest_size=16).hexdigest()


def block_ranges(first: int, num: int, row_bytes: int) -> list[tuple[int, int]]:
    """The (first row, number of rows) of each block of at most 1 MiB, for `num` rows from row `first` on.

    >>> block_ranges(10, 5, 2**19)
    [(10, 2), (12, 2), (14, 1)]
    """
    size = max(1, _BLOCK_BYTES // row_bytes)
    return [(start, min(size, first + num - start)) for start in range(first, first + num, size)]


def named_rows(blocks: Iterable[Block]) -> str:
    """Text that lists the rows of blocks. Adjacent blocks are joined.

    >>> named_rows([Block(0, 5, "", "", ""), Block(5, 5, "", "", ""), Block(20, 1, "", "", "")])
    'rows 0 to 9 and 20 to 20'
    """
    joined: list[list[int]] = []
    for block in blocks:
        if joined and joined[-1][1] == block.first:
            joined[-1][1] += block.num
        else:
            joined.append([block.first, block.first + block.num])
    return "rows " + " and ".join(f"{first} to {end - 1}" for first, end in joined)


def missing_rows(blocks: Sequence[Block], num: int) -> bool:
    """Whether the blocks, which are sorted by their first row, do not cover exactly the first `num` rows."""
    ends = accumulate((block.num for block in blocks), initial=0)
    return [*(block.first for block in blocks), num] != list(ends)


def damaged_tables(database: sqlite3.Connection, *, form: int) -> list[str]:
    """A message for each table whose rows have changed since they were written or cannot be read.

    Args:
        database: must have the SQL function `hash_row`.
        form: format of the index, 2 or 3.
    """
    faults = []
    hashed = HASHED | {"entries": COLUMNS_2} if form == 2 else HASHED
    for table, columns in hashed.items():
        sql = f"SELECT count(*) FROM {table} WHERE row_hash IS NOT hash_row({columns})"
        try:
            num = int(database.execute(sql).fetchone()[0])
        except (sqlite3.Error, UnicodeError) as error:
            faults.append(f"{DATABASE} is damaged: the table {table} cannot be read ({error})")
            continue
        if num:
            faults.append(f"{DATABASE} is damaged: {num:,} rows of the table {table} have changed")
    return faults
