"""Checksums of an index on disk: of its files by blocks of rows, and of the rows of its database.

The blocks of an addition are stored in the transaction that counts its vectors, and never change: an addition reads nothing
that was there before, and damage is not hashed again as if it were right. Shapes: N vectors, E embedding.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from numpy import ndarray

from diptych.index.tables import COLUMNS_2, DATABASE, HASHED

_BLOCK_BYTES = 1 << 20
"""Size of the vectors of a block, at most."""


class Block(NamedTuple):
    """The checksums of some rows; a row of the table `blocks`."""

    first: int
    num: int
    vectors: str
    integers: str | None
    """Of the codes' integers; None if the rows have no codes."""
    scales: str | None


def hash_block(rows: ndarray) -> str:
    """A checksum of an array's bytes, 32 hexadecimal digits."""
    return blake2b(rows.tobytes(), digest_size=16).hexdigest()


def block_ranges(first: int, num: int, row_bytes: int) -> list[tuple[int, int]]:
    """Split the rows from `first` on into (first, number) of blocks of at most 1 MiB.

    >>> block_ranges(10, 5, 2**19)
    [(10, 2), (12, 2), (14, 1)]
    """
    size = max(1, _BLOCK_BYTES // row_bytes)
    return [(start, min(size, first + num - start)) for start in range(first, first + num, size)]


def named_rows(blocks: Iterable[Block]) -> str:
    """The rows of blocks, in their order, with neighbors joined.

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
    """Whether the blocks, sorted by their first row, leave some of the first `num` rows without a checksum."""
    end = 0
    for block in blocks:
        if block.first != end:
            return True
        end += block.num
    return end != num


def damaged_tables(database: sqlite3.Connection, *, form: int) -> list[str]:
    """Tables that have rows whose values differ from those that were written, as messages; empty if none has."""
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
