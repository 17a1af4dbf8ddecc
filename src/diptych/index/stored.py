"""What an index in a folder and one in PostgreSQL read with the same SQL from the same tables."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from diptych.core.deprecated import renamed_parameter
from diptych.core.errors import BusyError, IndexingError
from diptych.index.dialects import Condition
from diptych.index.entry import Entry, FileStat, common_folder, merged_left_out
from diptych.index.filters import Filter
from diptych.index.tables import COLUMNS_OF_FORMAT, FORMAT, to_entry, total_left_out

_KEY_RANGE = "SELECT (SELECT min(key) FROM entries), (SELECT max(key) FROM entries)"
"""The first and the last key; two look-ups in the index of keys, where one SELECT of both would read the table."""


class StoredIndex(ABC):
    """The base of both kinds of index. A subclass says how a statement is run, and how rows of `about` are replaced."""

    models: tuple[str, ...]
    _format: int
    _placeholder: str
    """Stands for a value in a statement."""

    @abstractmethod
    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query."""

    @abstractmethod
    def _where(self, selected: Filter | None) -> Condition:
        """A filter in the words of the database."""

    @abstractmethod
    def _count(self, name: str) -> int:
        """A number of rows; `COUNTED` has the names."""

    @abstractmethod
    def _set_about(self, **values: str | None) -> None:
        """Replace rows of the table `about` in one transaction; None removes one."""

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return self._all(sql, values)[0][0]

    def _about(self) -> dict[str, str]:
        return dict(self._all("SELECT name, value FROM about"))

    def _current_format(self) -> int:
        """The current format; another process may have upgraded the index."""
        if self._format != FORMAT:
            self._format = int(self._about()["format"])
        return self._format

    def _is_old(self) -> bool:
        """Whether the index still has format 1, without checksums and stamps of sidecars."""
        return self._current_format() == 1

    def _columns(self) -> str:
        return COLUMNS_OF_FORMAT[self._current_format()]

    @property
    def model(self) -> str:
        """Tells the model that made the vectors from any other."""
        return self.models[0]

    def rename_model(self, models: Sequence[str]) -> None:
        """Store the names of the same model, the current one first."""
        self._set_about(model=models[0], aliases=json.dumps(models[1:]) if models[1:] else None)
        self.models = tuple(models)

    def __len__(self) -> int:
        return self._count("entries")

    def stamps(self, below: Sequence[str] | None = None) -> dict[str, FileStat]:
        """Of every entry and every picture that could not be read, by key; of all, or of those in some folders."""
        rows = [
            row
            for table in ("entries", "broken")
            for row in self._below(f"SELECT key, size, modified_ns FROM {table}", below)
        ]
        return {key: FileStat(size=size, modified_ns=modified) for key, size, modified in rows}

    def sidecars(self, below: Sequence[str] | None = None) -> dict[str, FileStat]:
        """Stamps of the text files that captions were read from, by key of the entry."""
        if self._is_old():
            return {}
        sql = "SELECT key, sidecar_size, sidecar_ns FROM entries WHERE sidecar_size IS NOT NULL"
        return {key: FileStat(size=size, modified_ns=modified) for key, size, modified in self._below(sql, below)}

    def targets(self, below: Sequence[str] | None = None) -> dict[str, str]:
        """Resolved paths of the pictures that a symbolic link leads to, by key of the entry."""
        sql = "SELECT key, target FROM entries WHERE target IS NOT NULL"
        return {} if self._is_old() else dict(self._below(sql, below))

    def some_captions(self, num: int) -> list[str]:
        """The first captions of so many entries at most, drawn as by chance: ordered by the digests of their pictures."""
        sql = f"SELECT {self._columns()} FROM entries WHERE captions <> '[]' ORDER BY digest LIMIT {int(num)}"
        return [to_entry(row).captions[0] for row in self._all(sql)]

    def broken(self, below: Sequence[str] | None = None) -> dict[str, str]:
        """Pictures that could not be read, with the reason."""
        return dict(sorted(self._below("SELECT key, reason FROM broken", below)))

    def num_broken(self) -> int:
        """How many pictures could not be read."""
        return self._count("broken")

    def digest_of(self, key: str) -> str | None:
        """The content of an entry; None if there is no such entry."""
        rows = self._all(f"SELECT digest FROM entries WHERE key = {self._placeholder}", (key,))
        return str(rows[0][0]) if rows else None

    def with_digest(self, digest: str) -> list[Entry]:
        """The entries of a content, by key."""
        sql = f"SELECT {self._columns()} FROM entries WHERE digest = {self._placeholder} ORDER BY key"
        return [to_entry(row) for row in self._all(sql, (digest,))]

    def has_vector(self, digest: str) -> bool:
        """Whether the content was embedded before."""
        return bool(self._all(f"SELECT 1 FROM vectors WHERE digest = {self._placeholder}", (digest,)))

    @renamed_parameter("chosen", "selected")
    def keys(self, selected: Filter | None = None) -> list[str]:
        """Keys of all entries, or of those that a filter lets through, in order."""
        condition = self._where(selected)
        return [key for (key,) in self._all(f"SELECT key FROM entries{condition.sql} ORDER BY key", condition.values)]

    def keys_at(self, place: str) -> list[str]:
        """The keys of an entry and of the entries in a folder, by the path of both, in order."""
        rows = self._all(f"SELECT key FROM entries WHERE key = {self._placeholder}", (place,))
        return [key for (key,) in (*rows, *sorted(self._below("SELECT key FROM entries", [place])))]

    def without_phash(self) -> list[Entry]:
        """The entries without a perceptual hash, by key."""
        if self._current_format() < FORMAT:
            return self.entries()
        sql = f"SELECT {self._columns()} FROM entries WHERE phash IS NULL ORDER BY key"
        return [to_entry(row) for row in self._all(sql)]

    @renamed_parameter("chosen", "selected")
    def entries(self, selected: Filter | None = None, *, after: str = "", limit: int | None = None) -> list[Entry]:
        """The entries that a filter lets through, by key; at most `limit` of those with a key greater than `after`."""
        condition = self._where(selected)
        both = f"{condition.sql} AND" if condition.sql else " WHERE"
        sql = f"SELECT {self._columns()} FROM entries{both} key > {self._placeholder} ORDER BY key"
        if limit is not None:
            sql += f" LIMIT {limit:d}"
        return [to_entry(row) for row in self._all(sql, (*condition.values, after))]

    def _below(self, sql: str, folders: Sequence[str] | None) -> list[Any]:
        """Rows of a query; with folders, of the keys in them and in their subfolders. A row of two folders comes twice."""
        if folders is None:
            return self._all(sql)
        word = "AND" if " WHERE " in sql else "WHERE"
        rows = []
        for folder in folders:
            prefix = folder.rstrip("/")  # "0" is the character after "/".
            rows += self._all(
                f"{sql} {word} key > {self._placeholder} AND key < {self._placeholder}", (f"{prefix}/", f"{prefix}0")
            )
        return rows

    def lost(self) -> set[str]:
        """Keys of entries that have no vector: theirs was damaged, and `repair` dropped it."""
        if self._count("lost") == 0:
            return set()
        sql = "SELECT key FROM entries WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.digest = entries.digest)"
        return {key for (key,) in self._all(sql)}

    def _record_damage(self) -> None:
        """Store that `verify` found damage for `repair`, unless the index cannot be written or has an earlier format."""
        if self._current_format() == FORMAT:
            with suppress(IndexingError, BusyError):
                self._set_about(damaged="1")

    def _has_recorded_damage(self) -> bool:
        return "damaged" in self._about()

    def left_out(self) -> dict[str, int]:
        """How many pictures of unsupported formats the indexed folders have, by suffix."""
        return total_left_out(self._about().get("left_out"))

    def set_left_out(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Store how many pictures of unsupported formats some folders have, by folder and suffix."""
        before = json.loads(self._about().get("left_out", "{}"))
        after = merged_left_out(before, counts)
        if after != before:
            self._set_about(left_out=json.dumps(after, sort_keys=True))

    def common_folder(self) -> str | None:
        """The nearest folder that contains all pictures; None if that is the root of the file system, or without pictures."""
        ((first, last),) = self._all(_KEY_RANGE)
        return common_folder(first, last)
