"""Counts of rows that SQLite triggers keep up to date, because counting a million rows takes longer than a search.

The triggers are part of the database. Earlier versions, which do not read the table `counts`, therefore update it as well.
"""

import sqlite3

COUNTED = {
    "entries": "SELECT count(*) FROM entries",
    "broken": "SELECT count(*) FROM broken",
    "unused": (
        "SELECT count(*) FROM vectors WHERE NOT EXISTS (SELECT 1 FROM entries WHERE entries.digest = vectors.digest)"
    ),
    "lost": (
        "SELECT count(*) FROM entries WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.digest = entries.digest)"
    ),
}
"""SQL by name of a count: entries, unreadable pictures, vectors without an entry, and entries without a vector."""
_HAS_VECTOR = "EXISTS (SELECT 1 FROM vectors WHERE digest = {row}.digest)"
_HAS_OTHER = "EXISTS (SELECT 1 FROM entries WHERE digest = {row}.digest AND key <> {row}.key)"
_TERMS = {
    "vector": _HAS_VECTOR,
    "freed": f"({_HAS_VECTOR} AND NOT {_HAS_OTHER})",
    "entry": "EXISTS (SELECT 1 FROM entries WHERE digest = {row}.digest)",
    "num": "(SELECT count(*) FROM entries WHERE digest = {row}.digest)",
}
"""SQL of the terms in `_TRIGGERS`. `{row}` is the name of the changed row."""
_TRIGGERS = {
    "entry_added": ("INSERT ON entries", "new", {"entries": "+ 1", "lost": "+ NOT {vector}", "unused": "- {freed}"}),
    "entry_removed": ("DELETE ON entries", "old", {"entries": "- 1", "lost": "- NOT {vector}", "unused": "+ {freed}"}),
    "vector_added": ("INSERT ON vectors", "new", {"lost": "- {num}", "unused": "+ NOT {entry}"}),
    "vector_removed": ("DELETE ON vectors", "old", {"lost": "+ {num}", "unused": "- NOT {entry}"}),
    "broken_added": ("INSERT ON broken", "new", {"broken": "+ 1"}),
    "broken_removed": ("DELETE ON broken", "old", {"broken": "- 1"}),
}
"""By name of a trigger: the event, the name of the changed row, and by name of a count, the number that is added to it."""


def has_counts(database: sqlite3.Connection) -> bool:
    """Whether the database has counts. Databases of earlier versions get them with the first change."""
    return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'counts'").fetchall())


def keep_counts(database: sqlite3.Connection) -> None:
    """Count all rows and create the triggers, within the current transaction."""
    database.execute("CREATE TABLE counts (name TEXT PRIMARY KEY, num INTEGER NOT NULL) WITHOUT ROWID")
    for name, sql in COUNTED.items():
        database.execute(f"INSERT INTO counts VALUES (?, ({sql}))", (name,))
    for statement in _trigger_statements().values():
        database.execute(statement)


def drop_counts(database: sqlite3.Connection) -> None:
    """Remove the counts and the triggers, for example before a change of most rows."""
    for name in _TRIGGERS:
        database.execute(f"DROP TRIGGER IF EXISTS {name}")
    database.execute("DROP TABLE IF EXISTS counts")


def wrong_counts(database: sqlite3.Connection) -> bool:
    """Whether a count is not the number of rows, or a trigger is not the one that `keep_counts` creates."""
    if not has_counts(database):
        return False
    kept = dict(database.execute("SELECT name, num FROM counts").fetchall())
    triggers = dict(database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall())
    counted = {name: database.execute(sql).fetchone()[0] for name, sql in COUNTED.items()}
    return kept != counted or triggers != _trigger_statements()


def _trigger_statements() -> dict[str, str]:
    statements = {}
    for name, (event, row, changes) in _TRIGGERS.items():
        updates = "; ".join(
            f"UPDATE counts SET num = num {change.format(**_TERMS).format(row=row)} WHERE name = '{count}'"
            for count, change in changes.items()
        )
        statements[name] = f"CREATE TRIGGER {name} AFTER {event} BEGIN {updates}; END"
    return statements
