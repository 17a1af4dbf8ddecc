"""Operations that an index in a folder and one in PostgreSQL perform with the same SQL."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from jaxtyping import Float32
from numpy import ndarray

from diptych.core.deprecation import renamed_parameter
from diptych.core.errors import BusyError, IndexingError
from diptych.core.program import command
from diptych.index.dialects import Condition, Dialect, where
from diptych.index.entry import Entry, FileStat, common_folder, merged_left_out
from diptych.index.filters import Filter
from diptych.index.tables import COLUMNS_OF_FORMAT, FORMAT, known_models, to_entry, total_left_out

_KEY_RANGE = "SELECT (SELECT min(key) FROM entries), (SELECT max(key) FROM entries)"
"""The first and the last key. Two subqueries use the index of keys, whereas a single SELECT would read the whole table."""


class SqlIndex(ABC):
    """Base of both kinds of index. A subclass defines how statements are executed and how rows of `about` are replaced."""

    place: str
    """The folder, or the address without its password."""
    dim: int
    """Dimension of the vectors."""
    bundle: str
    """Location of the model's bundle when the index was created."""
    models: tuple[str, ...]
    """Identities of the model that computed the vectors, the current one first."""
    _format: int
    _dialect: Dialect

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the database."""

    @abstractmethod
    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query."""

    @abstractmethod
    def _count(self, name: str) -> int:
        """The number of rows that the statement in `COUNTED` with this name counts."""

    @abstractmethod
    def _set_about(self, **values: str | None) -> None:
        """Replace rows of the table `about` in one transaction; None removes one."""

    @abstractmethod
    def _num_vectors(self) -> int:
        """The number of stored vectors."""

    @abstractmethod
    def _num_bytes(self) -> int:
        """The number of bytes on the disk."""

    def _where(self, selected: Filter | None) -> Condition:
        return where(selected, self._dialect)

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return self._all(sql, values)[0][0]

    def _about(self) -> dict[str, str]:
        return dict(self._all("SELECT name, value FROM about"))

    def _no_index(self) -> IndexingError:
        make = command("index", "add", self.place, "FOLDER", "--bundle", "BUNDLE")
        return IndexingError(f"{self.place}: holds no index; make one with: {make}")

    def _describe(self, about: Mapping[str, str]) -> None:
        """Set the properties that the table `about` stores.

        Raises:
            IndexingError: the index has an unknown format.
            KeyError, ValueError: the table is damaged.
        """
        self._check_format(about)
        self._format, self.dim, self.bundle = int(about["format"]), int(about["dim"]), about["bundle"]
        self.models = known_models(about)

    def _check_format(self, about: Mapping[str, str]) -> None:
        """Raise IndexingError if the index has an unknown format; a newer version may have upgraded it."""
        if about.get("format") not in {str(known) for known in COLUMNS_OF_FORMAT}:
            raise IndexingError(
                f"{self.place}: is an index of format {about.get('format')}, and this version reads 1 to 3; "
                "install the version of Diptych that wrote it, or a newer one"
            )

    def _check_same_model(self, about: Mapping[str, str]) -> None:
        """Raise IndexingError if another model's index has replaced this one."""
        if int(about["dim"]) != self.dim or not {*known_models(about)} & {*self.models}:
            raise IndexingError(
                f"{self.place}: was replaced by an index of another model, {about['model']} ({about['bundle']}); "
                "open it again"
            )

    def _check_vectors(self, vectors: Mapping[str, Float32[ndarray, " E"]]) -> None:
        """Raise IndexingError if new vectors do not have the dimension of the index."""
        for digest, vector in vectors.items():
            if vector.shape != (self.dim,):
                raise IndexingError(
                    f"{self.place}: has vectors of {self.dim} numbers; one of {vector.shape} was given ({digest})"
                )

    def _current_format(self) -> int:
        """The current format of the index, which another process may have upgraded."""
        if self._format != FORMAT:
            self._format = int(self._about()["format"])
        return self._format

    def _is_old(self) -> bool:
        """Whether the index has format 1, which has no checksums and no file stats of caption files."""
        return self._current_format() == 1

    def _columns(self) -> str:
        return COLUMNS_OF_FORMAT[self._current_format()]

    @property
    def model(self) -> str:
        """Identity of the model that computed the vectors."""
        return self.models[0]

    def rename_model(self, models: Sequence[str]) -> None:
        """Store the names of the same model, the current one first."""
        self._set_about(model=models[0], aliases=json.dumps(models[1:]) if models[1:] else None)
        self.models = tuple(models)

    def __len__(self) -> int:
        return self._count("entries")

    def stamps(self, below: Sequence[str] | None = None) -> dict[str, FileStat]:
        """File size and modification time of entries and unreadable pictures, by key (`Index.stamps`)."""
        rows = [
            row
            for table in ("entries", "broken")
            for row in self._below(f"SELECT key, size, modified_ns FROM {table}", below)
        ]
        return {key: FileStat(size=size, modified_ns=modified) for key, size, modified in rows}

    def sidecars(self, below: Sequence[str] | None = None) -> dict[str, FileStat]:
        """Size and modification time of the text files that captions were read from, by key of the entry (`Index.sidecars`)."""
        if self._is_old():
            return {}
        sql = "SELECT key, sidecar_size, sidecar_ns FROM entries WHERE sidecar_size IS NOT NULL"
        return {key: FileStat(size=size, modified_ns=modified) for key, size, modified in self._below(sql, below)}

    def targets(self, below: Sequence[str] | None = None) -> dict[str, str]:
        """Paths with all symbolic links resolved, by key, of the entries for which they differ from the key."""
        sql = "SELECT key, target FROM entries WHERE target IS NOT NULL"
        return {} if self._is_old() else dict(self._below(sql, below))

    def some_captions(self, num: int) -> list[str]:
        """The first captions of at most `num` entries: those with the smallest digests, which are a random sample."""
        sql = f"SELECT {self._columns()} FROM entries WHERE captions <> '[]' ORDER BY digest LIMIT {int(num)}"
        return [to_entry(row).captions[0] for row in self._all(sql)]

    def broken(self, below: Sequence[str] | None = None) -> dict[str, str]:
        """The reasons why pictures could not be read, by key."""
        return dict(sorted(self._below("SELECT key, reason FROM broken", below)))

    def size(self) -> dict[str, int]:
        """Numbers of entries and vectors, and bytes on the disk (`Index.size`)."""
        return {
            "entries": len(self),
            "vectors": self._num_vectors(),
            "unused": self._count("unused"),
            "unreadable": self.num_broken(),
            "bytes": self._num_bytes(),
        }

    def num_broken(self) -> int:
        """Number of pictures that could not be read."""
        return self._count("broken")

    def digest_of(self, key: str) -> str | None:
        """The digest of the content of an entry; None if the entry does not exist."""
        rows = self._all(f"SELECT digest FROM entries WHERE key = {self._dialect.placeholder}", (key,))
        return str(rows[0][0]) if rows else None

    def with_digest(self, digest: str) -> list[Entry]:
        """The entries with a content, sorted by key."""
        sql = f"SELECT {self._columns()} FROM entries WHERE digest = {self._dialect.placeholder} ORDER BY key"
        return [to_entry(row) for row in self._all(sql, (digest,))]

    def has_vector(self, digest: str) -> bool:
        """Whether the index has the vector of a content."""
        return bool(self._all(f"SELECT 1 FROM vectors WHERE digest = {self._dialect.placeholder}", (digest,)))

    @renamed_parameter("chosen", "selected")
    def keys(self, selected: Filter | None = None) -> list[str]:
        """The sorted keys of the entries that a filter selects; of all entries if it is None."""
        condition = self._where(selected)
        return [key for (key,) in self._all(f"SELECT key FROM entries{condition.sql} ORDER BY key", condition.values)]

    def keys_at(self, place: str) -> list[str]:
        """The key of the entry with a path, if it exists, and the sorted keys of the entries in the folder with that path."""
        rows = self._all(f"SELECT key FROM entries WHERE key = {self._dialect.placeholder}", (place,))
        return [key for (key,) in (*rows, *sorted(self._below("SELECT key FROM entries", [place])))]

    def without_phash(self) -> list[Entry]:
        """The entries without a perceptual hash, sorted by key."""
        if self._current_format() < FORMAT:
            return self.entries()
        sql = f"SELECT {self._columns()} FROM entries WHERE phash IS NULL ORDER BY key"
        return [to_entry(row) for row in self._all(sql)]

    @renamed_parameter("chosen", "selected")
    def entries(self, selected: Filter | None = None, *, after: str = "", limit: int | None = None) -> list[Entry]:
        """The entries that a filter selects, sorted by key (`Index.entries`)."""
        condition = self._where(selected)
        both = f"{condition.sql} AND" if condition.sql else " WHERE"
        sql = f"SELECT {self._columns()} FROM entries{both} key > {self._dialect.placeholder} ORDER BY key"
        if limit is not None:
            sql += f" LIMIT {limit:d}"
        return [to_entry(row) for row in self._all(sql, (*condition.values, after))]

    def _below(self, sql: str, folders: Sequence[str] | None) -> list[Any]:
        """Rows of a query; with folders, only those with keys below them. A row below two of the folders is returned twice."""
        if folders is None:
            return self._all(sql)
        word = "AND" if " WHERE " in sql else "WHERE"
        rows = []
        for folder in folders:
            prefix, value = folder.rstrip("/"), self._dialect.placeholder  # "0" is the character after "/".
            rows += self._all(f"{sql} {word} key > {value} AND key < {value}", (f"{prefix}/", f"{prefix}0"))
        return rows

    def lost(self) -> set[str]:
        """Keys of entries without a vector, because it was damaged and `repair` removed it."""
        if self._count("lost") == 0:
            return set()
        sql = "SELECT key FROM entries WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.digest = entries.digest)"
        return {key for (key,) in self._all(sql)}

    def _record_damage(self) -> None:
        """Store for `repair` that `verify` found damage, unless the index cannot be written or has an earlier format."""
        if self._current_format() == FORMAT:
            with suppress(IndexingError, BusyError):
                self._set_about(damaged="1")

    def _has_recorded_damage(self) -> bool:
        return "damaged" in self._about()

    def left_out(self) -> dict[str, int]:
        """Number of pictures of unsupported formats in the indexed folders, by suffix."""
        return total_left_out(self._about().get("left_out"))

    def set_left_out(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Store the number of pictures of unsupported formats in scanned folders, by folder and suffix."""
        before = json.loads(self._about().get("left_out", "{}"))
        after = merged_left_out(before, counts)
        if after != before:
            self._set_about(left_out=json.dumps(after, sort_keys=True))

    def common_folder(self) -> str | None:
        """The deepest folder that contains all pictures; None if it is the root of the file system, or if there are none."""
        ((first, last),) = self._all(_KEY_RANGE)
        return common_folder(first, last)
