"""An index on disk: SQLite for what is known of each picture, beside it one file of vectors that only grows.

    index.db       entries, digests, pictures that could not be read, what made the vectors
    vectors-0.f32  vectors of float32, one after another; the number counts how often the file was written anew
    lock           held by whoever writes

New vectors are appended and flushed before the transaction that counts them: after a crash at any moment the database knows
no vector that is not there, and what lies beyond those that it knows is overwritten. Readers see the last whole transaction.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from diptych.core.errors import IndexingError
from diptych.core.filelock import file_lock
from diptych.index.entry import Entry, Found, Stamp
from diptych.index.exact import nearest
from diptych.index.filters import Filter
from diptych.index.groups import alike
from diptych.index.tables import COLUMNS, SCHEMA, connect, forget, to_entry, to_row

_FORMAT = 1
_DATABASE, _LOCK = "index.db", "lock"


class Index:
    """One index, open for reading; `writing` opens it for changes."""

    def __init__(self, folder: Path) -> None:
        """Open what is there.

        Raises:
            IndexingError: there is no index, or it is damaged.
        """
        self.folder = folder
        if not (folder / _DATABASE).is_file():
            raise IndexingError(
                f"{folder}: holds no index; make one with: diptych index add {folder} FOLDER --bundle BUNDLE"
            )
        self._database = connect(folder / _DATABASE)
        about = self._about()
        if about.get("format") != str(_FORMAT):
            raise IndexingError(
                f"{folder}: is an index of format {about.get('format')}, and this version reads {_FORMAT}"
            )
        self.dim, self.model, self.bundle = int(about["dim"]), about["model"], about["bundle"]

    def close(self) -> None:
        """Let go of the files."""
        self._database.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM entries"))

    @contextmanager
    def writing(self, *, wait_s: float = 10.0) -> Iterator[None]:
        """Alone among all who write; readers go on.

        Raises:
            BusyError: another process writes, and still does after so many seconds.
            IndexingError: the folder cannot be written.
        """
        with self._disk(), file_lock(self.folder / _LOCK, wait_s=wait_s):
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

    def has_vector(self, digest: str) -> bool:
        """Whether the content was embedded before."""
        return bool(self._all("SELECT 1 FROM vectors WHERE digest = ?", (digest,)))

    def broken(self) -> dict[str, str]:
        """Pictures that could not be read, with the reason."""
        return dict(self._all("SELECT key, reason FROM broken ORDER BY key"))

    def entries(self, chosen: Filter | None = None) -> list[Entry]:
        """All, or those that a filter lets through, by key."""
        where, values = _where(chosen)
        return [to_entry(row) for row in self._all(f"SELECT {COLUMNS} FROM entries{where} ORDER BY key", values)]

    def add(
        self,
        entries: Sequence[Entry],
        vectors: Mapping[str, Float32[ndarray, " E"]],
        *,
        broken: Sequence[tuple[str, Stamp, str]] = (),
        gone: Sequence[str] = (),
    ) -> None:
        """Take up or replace entries, all of them or none.

        Args:
            entries: what is known of each picture.
            vectors: unit vectors by digest, of those digests that have none yet.
            broken: (key, stamp, reason) of pictures that could not be read.
            gone: keys to drop, such as the old places of pictures that were moved.

        Raises:
            IndexingError: a vector is missing, or has another length than the index's, or the disk would not take it.
        """
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
            self._append(np.stack(list(vectors.values())) if vectors else None, first)
            with self._database as database:
                places = enumerate(vectors, start=first)
                database.executemany("INSERT INTO vectors VALUES (?, ?)", [(digest, place) for place, digest in places])
                forget(database, [*gone, *(entry.key for entry in entries), *(key for key, _, _ in broken)])
                marks = ", ".join("?" * 8)
                database.executemany(f"INSERT INTO entries ({COLUMNS}) VALUES ({marks})", map(to_row, entries))
                rows = [(key, stamp.size, stamp.modified_ns, reason) for key, stamp, reason in broken]
                database.executemany("INSERT INTO broken VALUES (?, ?, ?, ?)", rows)

    def remove(self, keys: Iterable[str]) -> int:
        """Drop entries; how many there were. Their vectors go when the file is next written anew (`compact`)."""
        before = len(self)
        with self._disk(), self._database as database:
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
        old = self._vector_file()
        number = int(self._about()["file"]) + 1
        vectors = self._vectors()
        with self._disk():
            with (self.folder / f"vectors-{number}.f32").open("wb") as file:
                for start in range(0, len(kept), 65_536):
                    file.write(vectors[[place for _, place in kept[start : start + 65_536]]].tobytes())
                _flush(file)
            with self._database as database:
                database.execute("DELETE FROM vectors")
                rows = [(digest, place) for place, (digest, _) in enumerate(kept)]
                database.executemany("INSERT INTO vectors VALUES (?, ?)", rows)
                database.execute("UPDATE about SET value = ? WHERE name = 'file'", (str(number),))
        old.unlink(missing_ok=True)
        return dropped

    def search(self, queries: Float32[ndarray, "Q E"], *, top: int, chosen: Filter | None = None) -> list[list[Found]]:
        """The entries nearest to each query, the nearest first; of pictures of one content all.

        Args:
            queries: unit vectors.
            top: so many entries.
            chosen: which entries are asked at all.
        """
        where, values = _where(chosen)
        places = None
        if chosen is not None:
            sql = f"SELECT DISTINCT place FROM entries JOIN vectors USING (digest){where} ORDER BY place"
            places = np.array([place for (place,) in self._all(sql, values)], dtype=np.int64)
        vectors = self._vectors() if places is None else self._vectors()[places]
        answers: list[list[Found]] = []
        for query in queries:
            asked, found = top, list[Found]()
            while len(found) < top:  # Some of the nearest may be vectors that no entry has any more.
                rows, scores = nearest(vectors, query[None], top=asked)
                found = self._found(rows[0] if places is None else places[rows[0]], scores[0], top, where, values)
                if asked >= len(vectors):
                    break
                asked *= 4
            answers.append(found)
        return answers

    def _found(
        self, rows: Int64[ndarray, " K"], scores: Float32[ndarray, " K"], top: int, where: str, values: Sequence[Any]
    ) -> list[Found]:
        found: list[Found] = []
        both = f"{where} AND place = ?" if where else " WHERE place = ?"
        for place, score in zip(rows.tolist(), scores.tolist(), strict=True):
            sql = f"SELECT {COLUMNS} FROM entries JOIN vectors USING (digest){both} ORDER BY key"
            found += [Found(entry=to_entry(row), score=score) for row in self._all(sql, (*values, place))]
        return found[:top]

    def groups(self, threshold: float) -> list[list[str]]:
        """Keys of pictures whose content is the same, or whose vectors have at least this cosine."""
        rows = self._all("SELECT place, key FROM entries JOIN vectors USING (digest) ORDER BY place, key")
        keys: dict[int, list[str]] = {}
        for place, key in rows:
            keys.setdefault(place, []).append(key)
        places = list(keys)
        near = alike(np.array(self._vectors()[places]), threshold)
        together = {row for group in near for row in group}
        groups = [[key for row in group for key in keys[places[row]]] for group in near]
        return groups + [
            keys[place] for row, place in enumerate(places) if row not in together and len(keys[place]) > 1
        ]

    def vector(self, digest: str) -> Float32[ndarray, " E"]:
        """Of a content.

        Raises:
            IndexingError: there is none.
        """
        rows = self._all("SELECT place FROM vectors WHERE digest = ?", (digest,))
        if not rows:
            raise IndexingError(f"{self.folder}: has no vector of {digest}")
        return np.array(self._vectors()[rows[0][0]])

    def verify(self) -> list[str]:
        """What is wrong with it, and what to do; nothing where all is well."""
        faults = []
        state = self._one("PRAGMA integrity_check")
        if state != "ok":
            faults.append(f"{_DATABASE} is damaged ({state}); index the folders again")
        num, needed = self._num_vectors(), self._num_vectors() * self.dim * 4
        held = self._vector_file().stat().st_size if self._vector_file().exists() else 0
        if held < needed:
            return [*faults, f"{self._vector_file().name} has {held:,} bytes of {needed:,}; index the folders again"]
        if held > needed:
            said = f"{self._vector_file().name} has {held - needed:,} bytes of an addition that was cut off"
            faults.append(f"{said}; the next addition writes over them")
        vectors = self._vectors()
        for start in range(0, num, 65_536):
            lengths = np.linalg.norm(vectors[start : start + 65_536], axis=1)
            bad = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))
            if len(bad):
                faults.append(
                    f"{len(bad)} vectors are not of unit length, the first is number {start + bad[0]}; index again"
                )
        lost = int(self._one("SELECT count(*) FROM entries WHERE digest NOT IN (SELECT digest FROM vectors)"))
        if lost:
            faults.append(f"{lost} entries have no vector; index the folders again")
        return faults

    def size(self) -> dict[str, int]:
        """Entries, vectors, vectors that no entry has any more, unreadable pictures, bytes on the disk."""
        return {
            "entries": len(self),
            "vectors": self._num_vectors(),
            "unused": int(self._one("SELECT count(*) FROM vectors WHERE digest NOT IN (SELECT digest FROM entries)")),
            "unreadable": int(self._one("SELECT count(*) FROM broken")),
            "bytes": sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file()),
        }

    def _append(self, vectors: Float32[ndarray, "N E"] | None, first: int) -> None:
        if vectors is None:
            return
        with self._vector_file().open("r+b") as file:
            file.seek(first * self.dim * 4)
            file.truncate()
            file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            _flush(file)

    def _vectors(self) -> Float32[ndarray, "N E"]:
        num = self._num_vectors()
        if num == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        try:
            return np.memmap(self._vector_file(), dtype="<f4", mode="r", shape=(num, self.dim))
        except (OSError, ValueError):
            raise IndexingError(f"{self.folder}: is damaged; diptych index verify {self.folder} says how") from None

    def _vector_file(self) -> Path:
        return self.folder / f"vectors-{self._about()['file']}.f32"

    def _num_vectors(self) -> int:
        return int(self._one("SELECT count(*) FROM vectors"))

    def _about(self) -> dict[str, str]:
        return dict(self._all("SELECT name, value FROM about"))

    def _one(self, sql: str) -> Any:
        return self._all(sql)[0][0]

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._database.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise IndexingError(f"{self.folder}: cannot be read ({error})") from None

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise IndexingError(f"{self.folder}: cannot be written ({error}); it is as it was") from None
        except OSError as error:
            raise IndexingError(f"{self.folder}: cannot be written ({error.strerror}); it is as it was") from None


def create_index(folder: Path, *, dim: int, model: str, bundle: str) -> Index:
    """An empty index.

    Args:
        folder: what it becomes; empty, or not there.
        dim: numbers of a vector.
        model: tells the model that makes the vectors from any other.
        bundle: where the model lies, for people and commands.

    Raises:
        IndexingError: the folder holds something, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        left_over = {f".{_DATABASE}", f".{_DATABASE}-journal", _LOCK, "vectors-0.f32"}
        if any(path.name not in left_over for path in folder.iterdir()):
            raise IndexingError(f"{folder}: is not empty and holds no index")
        (folder / "vectors-0.f32").write_bytes(b"")
        beside = folder / f".{_DATABASE}"
        beside.unlink(missing_ok=True)
        database = sqlite3.connect(beside)
        try:
            database.executescript(SCHEMA)
            about = {"format": _FORMAT, "dim": dim, "model": model, "bundle": bundle, "file": 0}
            database.executemany(
                "INSERT INTO about VALUES (?, ?)", [(name, str(value)) for name, value in about.items()]
            )
            database.commit()
        finally:
            database.close()
        beside.rename(folder / _DATABASE)
    except (OSError, sqlite3.Error) as error:
        raise IndexingError(f"{folder}: cannot be written ({error})") from None
    return Index(folder)


def _where(chosen: Filter | None) -> tuple[str, tuple[str | float, ...]]:
    return ("", ()) if chosen is None else (f" WHERE ({chosen.sql})", chosen.values)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
