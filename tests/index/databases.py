"""The SQLite database of an index in a folder: changed by another program, and observed."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest

from diptych.index.local import LocalIndex
from diptych.index.tables import hash_row


@contextmanager
def changed_database(index: LocalIndex) -> Iterator[sqlite3.Connection]:
    """A connection of its own, whose changes are committed in the end."""
    with closing(sqlite3.connect(index.folder / "index.db")) as database:
        database.create_function("hash_row", -1, hash_row, deterministic=True)
        yield database
        database.commit()


def noted_statements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every statement whose rows are read, and how many there were, of databases that are opened from now on."""
    noted: list[tuple[str, int]] = []

    class Noting(sqlite3.Cursor):
        sql = ""

        def execute(self, sql: str, *values: Any) -> "Noting":
            self.sql = sql
            super().execute(sql, *values)
            return self

        def fetchall(self) -> list[Any]:
            rows = super().fetchall()
            noted.append((self.sql, len(rows)))
            return rows

    class Observed(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            return self.cursor(Noting).execute(sql, *values)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Observed))
    return noted
