"""An index on disk: SQLite for what is known of each picture, beside it one file of vectors that only grows.

    index.db       entries, digests, pictures that could not be read, what made the vectors
    vectors-0.f32  vectors one after another, with their codes (`vector_file.py`)
    nearly-0       what `build` makes of millions (`approximate.py`)
    lock           held by whoever writes

New vectors are appended and flushed before the transaction that counts them: after a crash at any moment the database knows
no vector that is not there, and what lies beyond those that it knows is overwritten. Readers see the last whole transaction.
"""

import json
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.errors import ConfigError, DiptychWarning, IndexingError
from diptych.core.files import atomic_write, file_lock, is_tmp
from diptych.index import approximate
from diptych.index.dialects import SQLITE, Condition, where
from diptych.index.entry import Entry, Found, Stamp
from diptych.index.exact import Vectors, nearest
from diptych.index.filters import Filter
from diptych.index.groups import groups_of_keys
from diptych.index.tables import COLUMNS, SCHEMA, connect, forget, to_entry, to_row
from diptych.index.vector_file import Kind, VectorFile

_FORMAT = 1
_DATABASE, _LOCK = "index.db", "lock"
_Read = TypeVar("_Read")


class LocalIndex:
    """An `Index` in a folder."""

    def __init__(self, folder: Path) -> None:
        """Open what is there.

        Raises:
            IndexingError: there is no index, or it is damaged.
        """
        self.folder, self.place = folder, str(folder)
        if not holds_local_index(folder):
            raise IndexingError(
                f"{folder}: holds no index; make one with: diptych index add {folder} FOLDER --bundle BUNDLE"
            )
        self._database, self._alone = connect(folder / _DATABASE), RLock()
        about = self._about()
        if about.get("format") != str(_FORMAT):
            raise IndexingError(
                f"{folder}: is an index of format {about.get('format')}, and this version reads {_FORMAT}"
            )
        self.dim, self.model, self.bundle = int(about["dim"]), about["model"], about["bundle"]
        self._nearly: approximate.Approximate | None = None

    def close(self) -> None:
        """Let go of the files."""
        self._database.close()

    def __enter__(self) -> "LocalIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM entries"))

    @contextmanager
    def writing(self, *, wait_s: float = 10.0) -> Iterator[None]:
        """Alone among all who write, by a lock on a file."""
        with ExitStack() as held:
            with self._disk():
                held.enter_context(file_lock(self.folder / _LOCK, wait_s=wait_s))
            yield

    def stamps(self) -> dict[str, Stamp]:
        """Of every entry and every picture that could not be read, by key."""
        rows = self._all(
            "SELECT key, size, modified_ns FROM entries UNION ALL SELECT key, size, modified_ns FROM broken"
        )
        return {key: Stamp(size=size, modified_ns=modified) for key, size, modified in rows}

    def digest_of(self, key: str) -> str | None:
        """The content of an entry; None if there is no such entry."""
        rows = self._all("SELECT digest FROM entries WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def with_digest(self, digest: str) -> list[Entry]:
        """The entries of a content, by key."""
        sql = f"SELECT {COLUMNS} FROM entries WHERE digest = ? ORDER BY key"
        return [to_entry(row) for row in self._all(sql, (digest,))]

    def has_vector(self, digest: str) -> bool:
        """Whether the content was embedded before."""
        return bool(self._all("SELECT 1 FROM vectors WHERE digest = ?", (digest,)))

    def broken(self) -> dict[str, str]:
        """Pictures that could not be read, with the reason."""
        return dict(self._all("SELECT key, reason FROM broken ORDER BY key"))

    def entries(self, chosen: Filter | None = None) -> list[Entry]:
        """All, or those that a filter lets through, by key."""
        condition = where(chosen, SQLITE)
        sql = f"SELECT {COLUMNS} FROM entries{condition.sql} ORDER BY key"
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
        for digest, vector in vectors.items():
            if vector.shape != (self.dim,):
                raise IndexingError(
                    f"{self.folder}: has vectors of {self.dim} numbers; one of {vector.shape} was given ({digest})"
                )
        for entry in entries:
            if entry.digest not in vectors and not self.has_vector(entry.digest):
                raise IndexingError(f"{entry.key}: has no vector")
        first = self._num_vectors()
        with self._disk():
            if vectors:
                self._file().append(np.stack(list(vectors.values())), first)
            with self._alone, self._database as database:
                places = enumerate(vectors, start=first)
                database.executemany("INSERT INTO vectors VALUES (?, ?)", [(digest, place) for place, digest in places])
                forget(database, [*gone, *(entry.key for entry in entries), *(key for key, _, _ in broken)])
                marks = ", ".join("?" * 8)
                database.executemany(f"INSERT INTO entries ({COLUMNS}) VALUES ({marks})", map(to_row, entries))
                rows = [(key, stamp.size, stamp.modified_ns, reason) for key, stamp, reason in broken]
                database.executemany("INSERT INTO broken VALUES (?, ?, ?, ?)", rows)

    def remove(self, keys: Iterable[str]) -> int:
        """Drop entries; how many there were. Their vectors stay in the file until it is written anew (`compact`)."""
        before = len(self)
        with self._disk(), self._alone, self._database as database:
            forget(database, list(keys))
        return before - len(self)

    def compact(self) -> int:
        """Write the vectors anew without those that no entry has; how many these were."""
        kept = self._all(
            "SELECT digest, place FROM vectors WHERE digest IN (SELECT digest FROM entries) ORDER BY place"
        )
        dropped = self._num_vectors() - len(kept)
        if dropped == 0:
            return 0
        old, number = self._file(), int(self._about()["file"]) + 1
        with self._disk():
            old.copy([place for _, place in kept], self._file(number), self._num_vectors())
            with self._alone, self._database as database:
                database.execute("DELETE FROM vectors")
                rows = [(digest, place) for place, (digest, _) in enumerate(kept)]
                database.executemany("INSERT INTO vectors VALUES (?, ?)", rows)
                database.execute("UPDATE about SET value = ? WHERE name = 'file'", (str(number),))
                database.execute("DELETE FROM about WHERE name = 'nearly'")
        self._nearly_path(number - 1).unlink(missing_ok=True)
        old.unlink()
        return dropped

    def build(self, kind: approximate.Kind | None) -> approximate.About | None:
        """Make the codes anew, and what finds nearly the nearest, or drop that."""
        num, path = self._num_vectors(), self._nearly_path(int(self._about()["file"]))
        with self._disk():
            self._file().make_codes(num)
            about = None if kind is None else approximate.build(self._vectors(), kind, path)
            with self._alone, self._database as database:
                database.execute("DELETE FROM about WHERE name = 'nearly'")
                if about is not None:
                    told = json.dumps(asdict(about))
                    database.execute("INSERT INTO about VALUES ('nearly', ?)", (told,))
            if about is None:
                path.unlink(missing_ok=True)
        self._nearly = None
        return about

    def search(self, queries: Float32[ndarray, "Q E"], *, top: int, chosen: Filter | None = None) -> list[list[Found]]:
        """The entries nearest to each query, compared with all that the filter lets through."""
        return self._of_one_moment(lambda: self._search(queries, top, chosen))

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
        nearly = None if among is not None else self._opened_nearly()
        if nearly is None or top > nearly.about.num:
            return nearest(vectors, queries, top=top, among=among, codes=self._file().codes(len(vectors)))
        rows, scores = nearly.search(queries, top=top)
        later = np.arange(nearly.about.num, len(vectors))
        more_rows, more_scores = nearest(vectors, queries, top=top, among=later)
        rows, scores = np.concatenate([rows, more_rows], axis=1), np.concatenate([scores, more_scores], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _opened_nearly(self) -> approximate.Approximate | None:
        told = self._about()
        if "nearly" not in told:
            return None
        about = approximate.About(**json.loads(told["nearly"]))
        if self._nearly is None or self._nearly.about != about:
            try:
                self._nearly = approximate.Approximate(self._nearly_path(int(told["file"])), about)
            except ConfigError as error:
                warnings.warn(f"{self.place}: is searched exactly; {error}", DiptychWarning, stacklevel=2)
                return None
        return self._nearly

    def _entries_at(self, rows: Int64[ndarray, "Q K"], condition: Condition) -> dict[int, list[Entry]]:
        """By place of a vector, the entries that have it and that the filter lets through."""
        entries: dict[int, list[Entry]] = {}
        both = f"{condition.sql} AND" if condition.sql else " WHERE"
        places = json.dumps(np.unique(rows).tolist())
        sql = (
            f"SELECT place, {COLUMNS} FROM entries JOIN vectors USING (digest){both} "
            "place IN (SELECT value FROM json_each(?)) ORDER BY key"
        )
        for place, *row in self._all(sql, (*condition.values, places)):
            entries.setdefault(place, []).append(to_entry(row))
        return entries

    def groups(self, threshold: float) -> list[list[str]]:
        """Keys of pictures whose content is the same, or whose vectors have at least this cosine."""
        keys: dict[int, list[str]] = {}

        def read() -> Float32[ndarray, "N E"]:
            keys.clear()
            sql = "SELECT place, key FROM entries JOIN vectors USING (digest) ORDER BY place, key"
            for place, key in self._all(sql):
                keys.setdefault(place, []).append(key)
            return np.asarray(self._vectors()[list(keys)], dtype=np.float32)

        vectors = self._of_one_moment(read)
        return groups_of_keys(list(keys.values()), vectors, threshold)

    def vectors(self, digests: Sequence[str]) -> dict[str, Float32[ndarray, " E"]]:
        """Of some contents."""

        def read() -> dict[str, Float32[ndarray, " E"]]:
            found, vectors = {}, self._vectors()
            for digest in digests:
                rows = self._all("SELECT place FROM vectors WHERE digest = ?", (digest,))
                if not rows:
                    raise IndexingError(f"{self.folder}: has no vector of {digest}")
                found[digest] = np.array(vectors[rows[0][0]], dtype=np.float32)
            return found

        return self._of_one_moment(read)

    def verify(self) -> list[str]:
        """What is wrong with it, and what to do; nothing where all is well."""
        faults = []
        state = self._one("PRAGMA integrity_check")
        if state != "ok":
            faults.append(f"{_DATABASE} is damaged ({state}); index the folders again")
        faults += self._file().faults(self._num_vectors())
        lost = int(self._one("SELECT count(*) FROM entries WHERE digest NOT IN (SELECT digest FROM vectors)"))
        if lost:
            faults.append(f"{lost} entries have no vector; index the folders again")
        return faults

    def size(self) -> dict[str, int]:
        """What is counted, and bytes on the disk."""
        return {
            "entries": len(self),
            "vectors": self._num_vectors(),
            "unused": int(self._one("SELECT count(*) FROM vectors WHERE digest NOT IN (SELECT digest FROM entries)")),
            "unreadable": int(self._one("SELECT count(*) FROM broken")),
            "bytes": sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file()),
        }

    def _of_one_moment(self, read: Callable[[], _Read]) -> _Read:
        """What is read, of one whole change; again where meanwhile the vectors were written anew and their file has gone."""
        while True:
            with self._alone:
                file = self._file().path
                self._all("BEGIN")
                try:
                    return read()
                except IndexingError:
                    self._database.rollback()
                    if self._file().path == file:
                        raise
                finally:
                    self._database.rollback()

    def _vectors(self) -> Vectors:
        try:
            return self._file().read(self._num_vectors())
        except (OSError, ValueError):
            raise IndexingError(f"{self.folder}: is damaged; diptych index verify {self.folder} says how") from None

    def _file(self, number: int | None = None) -> VectorFile:
        about = self._about()
        kind = cast(Kind, about.get("kind", "float32"))
        return VectorFile(self.folder, int(about["file"]) if number is None else number, self.dim, kind)

    def _nearly_path(self, number: int) -> Path:
        return self.folder / f"nearly-{number}"

    def _num_vectors(self) -> int:
        return int(self._one("SELECT count(*) FROM vectors"))

    def _about(self) -> dict[str, str]:
        return dict(self._all("SELECT name, value FROM about"))

    def _one(self, sql: str) -> Any:
        return self._all(sql)[0][0]

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._database.execute(sql, values).fetchall()
        except (sqlite3.DatabaseError, UnicodeEncodeError) as error:
            raise IndexingError(f"{self.folder}: cannot be read ({error})") from None

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise IndexingError(f"{self.folder}: cannot be written ({error}); it is as it was") from None
        except OSError as error:
            raise IndexingError(f"{self.folder}: cannot be written ({error.strerror}); it is as it was") from None


def holds_local_index(folder: Path) -> bool:
    """Whether there is one to open."""
    return (folder / _DATABASE).is_file()


def create_local_index(folder: Path, *, dim: int, model: str, bundle: str, kind: Kind = "float32") -> LocalIndex:
    """An empty index in a folder that is empty, or not there.

    Raises:
        IndexingError: the folder holds something, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = VectorFile(folder, 0, dim, kind)
        left_over = {_LOCK, f"{_LOCK}.holder", file.path.name, "codes-0.i8", "codes-0.f32"}
        if holds_local_index(folder):
            raise IndexingError(f"{folder}: holds an index already")
        if any(path.name not in left_over and not is_tmp(path) for path in folder.iterdir()):
            raise IndexingError(f"{folder}: is not empty and holds no index")
        file.create()
        about = {"format": _FORMAT, "dim": dim, "model": model, "bundle": bundle, "kind": kind, "file": 0}
        with atomic_write(folder / _DATABASE) as tmp, closing(sqlite3.connect(tmp)) as database:
            database.executescript(SCHEMA)
            database.executemany(
                "INSERT INTO about VALUES (?, ?)", [(name, str(value)) for name, value in about.items()]
            )
            database.commit()
    except (OSError, sqlite3.Error, UnicodeEncodeError) as error:
        raise IndexingError(f"{folder}: cannot be written ({error})") from None
    return LocalIndex(folder)
