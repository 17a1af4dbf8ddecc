"""An index in a folder: additions, removals, repairs and duplicates. `local_store.py` describes its files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.errors import ConfigError, IndexingError
from diptych.core.files import flush, sha256_of
from diptych.core.lists import check_list
from diptych.index import approximate, build_signs
from diptych.index.checksums import Block, missing_rows
from diptych.index.entry import Entry, FileStat
from diptych.index.exact import Vectors
from diptych.index.groups import DuplicateGroup, duplicate_groups
from diptych.index.local_search import LocalSearch
from diptych.index.tables import (
    FORMAT,
    delete_keys,
    insert,
    keep_vectors,
    set_about,
    set_phash,
    to_row,
    to_unsigned,
)
from diptych.index.vector_file import AGAIN, VectorFile


class LocalIndex(LocalSearch):
    """An `Index` in a folder."""

    def __enter__(self) -> "LocalIndex":
        return self

    def add(
        self,
        entries: Sequence[Entry],
        vectors: Mapping[str, Float32[ndarray, " E"]],
        *,
        broken: Sequence[tuple[str, FileStat, str]] = (),
        gone: Sequence[str] = (),
    ) -> None:
        """Add or replace entries (`Index.add`). Vectors are written before the transaction that refers to them."""
        self._check_writing("add")
        self._check_vectors(vectors)
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
                delete_keys(database, [*gone, *(entry.key for entry in entries), *(key for key, _, _ in broken)])
                insert(database, "entries", [to_row(entry) for entry in entries])
                insert(database, "broken", [(key, stat.size, stat.modified_ns, reason) for key, stat, reason in broken])

    def remove(self, keys: Iterable[str]) -> int:
        """Remove entries, and return their number. Their vectors stay in the file until `compact` rewrites it."""
        check_list(keys, "keys")
        with self._changing() as database:
            return delete_keys(database, list(keys))

    def compact(self, *, least_share: float = 0.0) -> int:
        """Rewrite the file of vectors without those that no entry has, and return the number of removed vectors.

        Args:
            least_share: do nothing unless more than this share of all vectors has no entry.

        Raises:
            IndexingError: the vectors are damaged (they would get new checksums), or the index could not be written.
        """
        self._check_writing("compact")
        self._upgrade()
        num, num_unused = self._num_vectors(), self._count("unused")
        if num_unused <= least_share * num:
            return 0
        with self._disk():
            damaged = self._file().damaged_vectors(num, self._blocks())
        if damaged is not None:
            raise IndexingError(f"{self.folder}: {damaged}; {AGAIN}")
        self._rewrite(self._places_of("WHERE digest IN (SELECT digest FROM entries)"))
        return num_unused

    def _places_of(self, condition: str = "") -> Int64[ndarray, " N"]:
        rows = self._all(f"SELECT place FROM vectors {condition} ORDER BY place")
        return np.fromiter((place for (place,) in rows), dtype=np.int64, count=len(rows))

    def _rewrite(self, kept: Int64[ndarray, " N"]) -> None:
        """Write the vectors at the given places, which are sorted, to a new file, and delete the result of `build`."""
        old = self._file()
        number = max(int(self._about()["file"]), old.codes_number) + 1
        with self._disk():
            blocks = old.copy(kept, self._file(number))
            flush(self.folder)
            with self._changing() as database:
                keep_vectors(database, kept)
                database.execute("DELETE FROM blocks")
                insert(database, "blocks", blocks)
                set_about(database, file=str(number), codes=str(number), **approximate.NOT_BUILT)
        self._ann_path(old.codes_number).unlink(missing_ok=True)
        old.unlink()

    def repair(self) -> None:
        """Remove damaged vectors, and rebuild damaged codes and structures. `lost` lists the entries to add again.

        Checksums are compared only if `verify` found damage, or if a file is missing or too short. Otherwise an addition to a
        million pictures would read gigabytes.
        """
        self._check_writing("repair")
        is_known = self._current_format() == FORMAT
        self._upgrade()
        if is_known and not self._may_be_damaged():
            return
        num, blocks = self._num_vectors(), self._blocks()
        with self._disk():
            intact = np.flatnonzero(self._file().intact(blocks))
            kept = np.intersect1d(self._places_of(), intact, assume_unique=True)
        self._count_again()
        if len(kept) < num or missing_rows(blocks, num):
            self._rewrite(kept)
        elif self._ann_faults() or self._file().faults_of_codes(num, blocks):
            about = self._ann_info()
            self._build(lambda vectors, _, path: None if about is None else build_signs.rewrite(vectors, path, about))
        self._set_about(damaged=None)

    def build(
        self, kind: approximate.AnnKind | None, queries: Float32[ndarray, "Q E"] | None = None
    ) -> approximate.AnnInfo | None:
        """Rebuild the codes, and build sign bits (`Index.build`), or delete these if `kind` is None."""
        if kind == "hnsw":
            raise ConfigError(f"{self.folder}: hnsw is for an index in PostgreSQL; in a folder, use signs")

        def make(vectors: Vectors, file: VectorFile, path: Path) -> approximate.AnnInfo | None:
            codes = file.codes(len(vectors))
            return None if kind is None else build_signs.build(vectors, path, codes=codes, queries=queries)

        return self._build(make)

    def _build(
        self, make: Callable[[Vectors, VectorFile, Path], approximate.AnnInfo | None]
    ) -> approximate.AnnInfo | None:
        """Rebuild the codes, and write the structure that `make` returns, to files with new names. Then switch to these."""
        self._check_writing("build")
        self._upgrade()
        num, old = self._num_vectors(), self._file()
        new = self._file(codes=old.codes_number + 1)
        path = self._ann_path(new.codes_number)
        with self._disk():
            blocks = new.make_codes(num, self._blocks())
            try:
                about = make(self._vectors(), new, path)
            except ConfigError:
                new.unlink_codes()
                raise
            rows = {} if about is None else {**about.rows(), "nearly_sha256": sha256_of(path)}
            with self._changing() as database:
                database.execute("DELETE FROM blocks")
                insert(database, "blocks", blocks)
                set_about(database, codes=str(new.codes_number), **{**approximate.NOT_BUILT, **rows})
        old.unlink_codes()
        self._ann_path(old.codes_number).unlink(missing_ok=True)
        return about

    def built(self) -> approximate.AnnInfo | None:
        """The description of what `build` built; None for a structure of an earlier version, which searches do not use."""
        about = self._ann_info()
        return about if about is not None and about.kind == "signs" else None

    def set_phashes(self, phashes: Mapping[str, int]) -> None:
        """Store perceptual hashes by digest."""
        with self._changing() as database:
            set_phash(database, phashes)

    def duplicates(self, threshold: float, *, phashes: Mapping[str, int] | None = None) -> list[DuplicateGroup]:
        """Groups of equal and of similar pictures (`Index.duplicates`)."""
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

        vectors = self._read_snapshot(read)
        known = [hashes[place] for place in keys]
        return duplicate_groups(list(keys.values()), known, vectors, threshold, rows=np.array(list(keys), np.int64))

    def vectors(self, digests: Sequence[str]) -> dict[str, Float32[ndarray, " E"]]:
        """The vectors of some contents, by digest (`Index.vectors`)."""
        check_list(digests, "digests")

        def read() -> dict[str, Float32[ndarray, " E"]]:
            found, vectors = {}, self._vectors()
            for digest in digests:
                rows = self._all("SELECT place FROM vectors WHERE digest = ?", (digest,))
                if not rows:
                    raise IndexingError(f"{self.folder}: has no vector of {digest}")
                found[digest] = np.array(vectors[rows[0][0]], dtype=np.float32)
            return found

        return self._read_snapshot(read)
