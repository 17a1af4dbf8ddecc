"""An index in a folder (`local_store.py` describes its files): what is added to it and found in it."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.errors import ConfigError, DiptychWarning, IndexingError
from diptych.core.files import flush, sha256_of
from diptych.core.lists import check_list
from diptych.index import approximate
from diptych.index.checksums import Block, missing_rows
from diptych.index.dialects import SQLITE, Condition, where
from diptych.index.entry import Entry, Found, Stamp
from diptych.index.exact import Vectors, nearest
from diptych.index.filters import Filter
from diptych.index.groups import DuplicateGroup, duplicate_groups
from diptych.index.local_store import LocalStore
from diptych.index.tables import (
    FORMAT,
    forget,
    insert,
    set_about,
    set_phash,
    to_entry,
    to_row,
    to_unsigned,
)
from diptych.index.vector_file import AGAIN

_NOT_BUILT = dict.fromkeys(("nearly", "nearly_sha256", "nearly_top", "nearly_bytes"))
"""Rows of the table `about` without an approximate structure."""


class LocalIndex(LocalStore):
    """An `Index` in a folder."""

    def __init__(self, folder: Path) -> None:
        """Open what is there.

        Raises:
            IndexingError: there is no index, or it is damaged.
        """
        super().__init__(folder)
        self._nearly: approximate.Approximate | None = None
        self._unusable: tuple[Path, str] | None = None
        """Approximate structure that could not be opened in the last search, and the reason."""

    def __enter__(self) -> "LocalIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def digest_of(self, key: str) -> str | None:
        """The content of an entry; None if there is no such entry."""
        rows = self._all("SELECT digest FROM entries WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def with_digest(self, digest: str) -> list[Entry]:
        """The entries of a content, by key."""
        sql = f"SELECT {self._columns()} FROM entries WHERE digest = ? ORDER BY key"
        return [to_entry(row) for row in self._all(sql, (digest,))]

    def has_vector(self, digest: str) -> bool:
        """Whether the content was embedded before."""
        return bool(self._all("SELECT 1 FROM vectors WHERE digest = ?", (digest,)))

    def entries(self, chosen: Filter | None = None) -> list[Entry]:
        """All, or those that a filter lets through, by key."""
        condition = where(chosen, SQLITE)
        sql = f"SELECT {self._columns()} FROM entries{condition.sql} ORDER BY key"
        return [to_entry(row) for row in self._all(sql, condition.values)]

    def add(
        self,
        entries: Sequence[Entry],
        vectors: Mapping[str, Float32[ndarray, " E"]],
        *,
        broken: Sequence[tuple[str, Stamp, str]] = (),
        gone: Sequence[str] = (),
    ) -> None:
        """Take up or replace entries: vectors first, then in one transaction what counts them."""
        self._check_writing("add")
        for digest, vector in vectors.items():
            if vector.shape != (self.dim,):
                raise IndexingError(
                    f"{self.folder}: has vectors of {self.dim} numbers; one of {vector.shape} was given ({digest})"
                )
        for entry in entries:
            if entry.digest not in vectors and not self.has_vector(entry.digest):
                raise IndexingError(f"{entry.key}: has no vector")
        self._upgrade()
        first, blocks = self._num_vectors(), list[Block]()
        with self._disk():
            if vectors:
                blocks = self._file().append(np.stack(list(vectors.values())), first)
            with self._changing() as database:
                insert(database, "vectors", [(digest, place) for place, digest in enumerate(vectors, start=first)])
                insert(database, "blocks", blocks)
                forget(database, [*gone, *(entry.key for entry in entries), *(key for key, _, _ in broken)])
                insert(database, "entries", [to_row(entry) for entry in entries])
                insert(database, "broken", [(key, at.size, at.modified_ns, reason) for key, at, reason in broken])

    def remove(self, keys: Iterable[str]) -> int:
        """Drop entries; how many there were. Their vectors stay in the file until it is written anew (`compact`)."""
        check_list(keys, "keys")
        before = len(self)
        with self._changing() as database:
            forget(database, list(keys))
        return before - len(self)

    def compact(self) -> int:
        """Write the vectors anew without those that no entry has; how many these were.

        Raises:
            IndexingError: the vectors are damaged (their checksums would be made anew, too), or it could not be written.
        """
        self._check_writing("compact")
        self._upgrade()
        kept = self._all(
            "SELECT digest, place FROM vectors WHERE digest IN (SELECT digest FROM entries) ORDER BY place"
        )
        num = self._num_vectors()
        if num == len(kept):
            return 0
        with self._disk():
            damaged = self._file().damaged_vectors(num, self._blocks())
        if damaged is not None:
            raise IndexingError(f"{self.folder}: {damaged}; {AGAIN}")
        self._write_anew(kept)
        return num - len(kept)

    def _write_anew(self, kept: Sequence[tuple[str, int]]) -> None:
        """Write the vectors with the given digests and places to a new file, and drop the result of `build`."""
        old = self._file()
        number = max(int(self._about()["file"]), old.codes_number) + 1
        with self._disk():
            blocks = old.copy([place for _, place in kept], self._file(number))
            flush(self.folder)
            with self._changing() as database:
                for table in ("vectors", "blocks"):
                    database.execute(f"DELETE FROM {table}")
                insert(database, "vectors", [(digest, place) for place, (digest, _) in enumerate(kept)])
                insert(database, "blocks", blocks)
                set_about(database, file=str(number), codes=str(number), **_NOT_BUILT)
        self._nearly_path(old.codes_number).unlink(missing_ok=True)
        old.unlink()

    def repair(self) -> None:
        """Drop damaged vectors, and rebuild damaged codes and structures. `lost` lists the entries to add again.

        Checksums are compared only if `verify` found damage, or if a file is missing or too short: an addition to a million
        pictures would read gigabytes.
        """
        self._check_writing("repair")
        is_known = self._current_format() == FORMAT
        self._upgrade()
        if is_known and not self._may_be_damaged():
            return
        rows, blocks = self._all("SELECT digest, place FROM vectors ORDER BY place"), self._blocks()
        with self._disk():
            intact = self._file().intact(blocks)
        kept = [(digest, place) for digest, place in rows if place < len(intact) and intact[place]]
        if len(kept) < len(rows) or missing_rows(blocks, len(rows)):
            self._write_anew(kept)
        elif self._faults_of_nearly() or self._file().faults_of_codes(len(rows), blocks):
            about = self._about_nearly()
            try:
                self.build(None if about is None else about.kind)
            except ConfigError:  # faiss is not installed here.
                self.build(None)
        self._set_about(damaged=None)

    def build(self, kind: approximate.Kind | None) -> approximate.About | None:
        """Make the codes anew, and what finds nearly the nearest, or drop that; under new names, until they are counted."""
        self._check_writing("build")
        self._upgrade()
        num, old = self._num_vectors(), self._file()
        new = self._file(codes=old.codes_number + 1)
        path = self._nearly_path(new.codes_number)
        with self._disk():
            blocks = new.make_codes(num, self._blocks())
            about = None if kind is None else approximate.build(self._vectors(), kind, path)
            built = {} if about is None else {**about.rows(), "nearly_sha256": sha256_of(path)}
            with self._changing() as database:
                database.execute("DELETE FROM blocks")
                insert(database, "blocks", blocks)
                set_about(database, codes=str(new.codes_number), **{**_NOT_BUILT, **built})
        old.unlink_codes()
        self._nearly_path(old.codes_number).unlink(missing_ok=True)
        return about

    def search(self, queries: Float32[ndarray, "Q E"], *, top: int, chosen: Filter | None = None) -> list[list[Found]]:
        """The entries nearest to each query, compared with all that the filter lets through."""
        with self._alone:
            found = self._of_one_moment(lambda: self._search(queries, top, chosen))
            unusable, self._unusable = self._unusable, None
        # No warning if another process has just replaced the structure.
        if unusable is not None and unusable[0] == self._nearly_path(self._file().codes_number):
            warnings.warn(f"{self.place}: is searched exactly; {unusable[1]}", DiptychWarning, stacklevel=2)
        return found

    def _search(self, queries: Float32[ndarray, "Q E"], top: int, chosen: Filter | None) -> list[list[Found]]:
        condition = where(chosen, SQLITE)
        among = None
        if chosen is not None:
            sql = f"SELECT DISTINCT place FROM entries JOIN vectors USING (digest){condition.sql} ORDER BY place"
            among = np.array([place for (place,) in self._all(sql, condition.values)], dtype=np.int64)
        vectors = self._vectors()
        num, answers = len(vectors) if among is None else len(among), dict[int, list[Found]]()
        left, asked = list(range(len(queries))), min(top, num)
        while left:
            rows, scores = self._nearest(vectors, queries[left], asked, among)
            entries = self._entries_at(rows, condition)
            for number, places, cosines in zip(left, rows.tolist(), scores.tolist(), strict=True):
                scored = zip(places, cosines, strict=True)
                found = [Found(entry=entry, score=score) for place, score in scored for entry in entries.get(place, ())]
                answers[number] = found[:top]
            # Some of the nearest may be vectors that no entry has any more.
            left = [number for number in left if len(answers[number]) < top and asked < num]
            asked = min(4 * asked, num)
        return [answers[number] for number in range(len(queries))]

    def _nearest(
        self, vectors: Vectors, queries: Float32[ndarray, "Q E"], top: int, among: Int64[ndarray, " M"] | None
    ) -> tuple[Int64[ndarray, "Q K"], Float32[ndarray, "Q K"]]:
        """Of all or some; nearly, where that was built: of the vectors that came later exactly."""
        codes = self._file().codes(len(vectors))
        nearly = None if among is not None else self._opened_nearly(len(vectors))
        if nearly is None:
            return nearest(vectors, queries, top=top, among=among, codes=codes)
        return nearly.search(vectors, queries, top=top, codes=codes)

    def _opened_nearly(self, num: int) -> approximate.Approximate | None:
        """The approximate structure of an index with `num` vectors; None if there is none, or it cannot be used."""
        about, path = self._about_nearly(), self._nearly_path(self._file().codes_number)
        if about is None:
            self._nearly = None
            return None
        try:
            file = approximate.FileId.of(path)
            if self._nearly is None or (self._nearly.about, self._nearly.file) != (about, file):
                self._nearly = None  # Free the old one first.
                if about.bytes is None and self._faults_of_nearly():
                    raise OSError(f"{path.name} is damaged")
                self._nearly = approximate.Approximate(file, about)
            if about.num > num:
                raise OSError(f"{path.name} has {about.num:,} vectors, and the index {num:,}")
        except (ConfigError, OSError) as error:
            self._unusable = path, str(error)
            return None
        return self._nearly

    def _entries_at(self, rows: Int64[ndarray, "Q K"], condition: Condition) -> dict[int, list[Entry]]:
        """By place of a vector, the entries that have it and that the filter lets through."""
        entries: dict[int, list[Entry]] = {}
        both = f"{condition.sql} AND" if condition.sql else " WHERE"
        places = json.dumps(np.unique(rows).tolist())
        sql = (
            f"SELECT place, {self._columns()} FROM entries JOIN vectors USING (digest){both} "
            "place IN (SELECT value FROM json_each(?)) ORDER BY key"
        )
        for place, *row in self._all(sql, (*condition.values, places)):
            entries.setdefault(place, []).append(to_entry(row))
        return entries

    def set_phashes(self, phashes: Mapping[str, int]) -> None:
        """Store perceptual hashes by digest."""
        with self._changing() as database:
            set_phash(database, phashes)

    def duplicates(self, threshold: float, *, phashes: Mapping[str, int] | None = None) -> list[DuplicateGroup]:
        """Groups of equal pictures, and of pictures whose vectors have at least the cosine `threshold`."""
        keys, hashes = dict[int, list[str]](), dict[int, int | None]()

        def read() -> Vectors:
            keys.clear()
            hashes.clear()
            column = "NULL" if self._current_format() < 3 else "phash"
            sql = f"SELECT place, key, digest, {column} FROM entries JOIN vectors USING (digest) ORDER BY place, key"
            for place, key, digest, phash in self._all(sql):
                keys.setdefault(place, []).append(key)
                other = hashes.get(place, (phashes or {}).get(digest))
                hashes[place] = other if phash is None else to_unsigned(phash)
            return self._vectors()

        vectors = self._of_one_moment(read)
        known = [hashes[place] for place in keys]
        return duplicate_groups(list(keys.values()), known, vectors, threshold, rows=np.array(list(keys), np.int64))

    def vectors(self, digests: Sequence[str]) -> dict[str, Float32[ndarray, " E"]]:
        """Of some contents."""
        check_list(digests, "digests")

        def read() -> dict[str, Float32[ndarray, " E"]]:
            found, vectors = {}, self._vectors()
            for digest in digests:
                rows = self._all("SELECT place FROM vectors WHERE digest = ?", (digest,))
                if not rows:
                    raise IndexingError(f"{self.folder}: has no vector of {digest}")
                found[digest] = np.array(vectors[rows[0][0]], dtype=np.float32)
            return found

        return self._of_one_moment(read)
