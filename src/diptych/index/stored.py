"""What an index in a folder and one in PostgreSQL read with the same SQL from the same tables."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from diptych.core.errors import BusyError, IndexingError
from diptych.index.entry import Stamp, common_folder, merged_left_out
from diptych.index.tables import COLUMNS_OF_FORMAT, FORMAT, to_entry, total_left_out

_KEY_RANGE = "SELECT (SELECT min(key) FROM entries), (SELECT max(key) FROM entries)"
"""The first and the last key; two look-ups in the index of keys, where one SELECT of both would read the table."""


class StoredIndex(ABC):
    """The base of both kinds of index. A subclass says how a statement is run, and how rows of `about` are replaced."""

    models: tuple[str, ...]
    _format: int

    @abstractmethod
    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query."""

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

    def stamps(self) -> dict[str, Stamp]:
        """Of every entry and every picture that could not be read, by key."""
        rows = self._all(
            "SELECT key, size, modified_ns FROM entries UNION ALL SELECT key, size, modified_ns FROM broken"
        )
        return {key: Stamp(size=size, modified_ns=modified) for key, size, modified in rows}

    def sidecars(self) -> dict[str, Stamp]:
        """Stamps of the text files that captions were read from, by key of the entry."""
        if self._is_old():
            return {}
        rows = self._all("SELECT key, sidecar_size, sidecar_ns FROM entries WHERE sidecar_size IS NOT NULL")
        return {key: Stamp(size=size, modified_ns=modified) for key, size, modified in rows}

    def targets(self) -> dict[str, str]:
        """Resolved paths of the pictures that a symbolic link leads to, by key of the entry."""
        return {} if self._is_old() else dict(self._all("SELECT key, target FROM entries WHERE target IS NOT NULL"))

    def some_captions(self, num: int) -> list[str]:
        """The first captions of so many entries at most, drawn as by chance: ordered by the digests of their pictures."""
        sql = f"SELECT {self._columns()} FROM entries WHERE captions <> '[]' ORDER BY digest LIMIT {int(num)}"
        return [to_entry(row).captions[0] for row in self._all(sql)]

    def broken(self) -> dict[str, str]:
        """Pictures that could not be read, with the reason."""
        return dict(self._all("SELECT key, reason FROM broken ORDER BY key"))

    def lost(self) -> set[str]:
        """Keys of entries that have no vector: theirs was damaged, and `repair` dropped it."""
        sql = "SELECT key FROM entries WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.digest = entries.digest)"
        return {key for (key,) in self._all(sql)}

    def _note_damage(self) -> None:
        """Store that `verify` found damage for `repair`, unless the index cannot be written or has an earlier format."""
        if self._current_format() == FORMAT:
            with suppress(IndexingError, BusyError):
                self._set_about(damaged="1")

    def _has_noted_damage(self) -> bool:
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
