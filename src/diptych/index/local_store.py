"""The files of an index in a folder: opening, locking, transactions and checks.

    index.db       entries, digests, pictures that could not be read, the model of the vectors
    vectors-0.f32  vectors, next to files with their codes (`vector_file.py`)
    nearly-0       the ANN structure that `build` writes (`signs.py`)
    lock           lock file of the writer, next to a note with the name of the writing process

New vectors are appended and flushed before the transaction that refers to them. After a crash, the database therefore refers
only to complete vectors, and the next addition overwrites what follows them. The same transaction stores the checksums of the
new vectors (`checksums.py`). Readers see the last committed transaction.
Rewritten files have a new number, which is stored in a transaction; the next writer removes files with other numbers. If the
database is replaced by another file, for example because the folder was deleted and the index was created again, an open index
switches to the new file.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import RLock, get_ident
from typing import Any, TypeVar, cast

from diptych.core.errors import IndexingError
from diptych.core.files import clear_tmp, file_lock, sha256_of
from diptych.core.program import command
from diptych.index.approximate import NOT_BUILT, AnnInfo
from diptych.index.checksums import Block, damaged_tables
from diptych.index.connection import Connection, connect
from diptych.index.dialects import SQLITE
from diptych.index.exact import Vectors
from diptych.index.row_counts import COUNTED, drop_counts, has_counts, keep_counts, wrong_counts
from diptych.index.sql_index import SqlIndex
from diptych.index.tables import DATABASE, FORMAT, holds_local_index, set_about
from diptych.index.upgrade import upgrade
from diptych.index.vector_file import AGAIN, NEXT_ADD, VectorDtype, VectorFile

LOCK = "lock"
"""Name of the lock file in the folder of an index."""
_Read = TypeVar("_Read")
_NUM_CHECKED = """
    SELECT CASE WHEN coalesce(sum(num), 0) = coalesce(max(first + num), 0) THEN coalesce(sum(num), 0) ELSE -1 END FROM blocks
"""
"""Number of vectors with checksums; -1 if the blocks have gaps."""
_NUMBERED = re.compile(r"(vectors-\d+\.(f32|f16)|codes-\d+\.(i8|f32)|nearly-\d+)").fullmatch


class LocalStore(SqlIndex):
    """Base of `LocalIndex` with the operations on the files, without additions and searches."""

    _dialect = SQLITE

    def __init__(self, folder: Path) -> None:
        """Open an existing index.

        Raises:
            IndexingError: the index does not exist, or it is damaged.
        """
        self.folder, self.place, self._lock = folder, str(folder), RLock()
        self._writer: int | None = None
        """Id of the thread that may write."""
        self._is_in_snapshot = False
        self._counting: Connection | None = None
        """The connection whose database is known to have counts."""
        self._opened = self._connect()
        try:
            self._describe(self._about())
        except IndexingError:
            self.close()
            raise

    def _connect(self) -> Connection:
        if not holds_local_index(self.folder):
            raise self._no_index()
        return connect(self.folder / DATABASE)

    def _describe(self, about: Mapping[str, str]) -> None:
        try:
            super()._describe(about)
        except (KeyError, ValueError):
            raise self._damaged() from None

    def _follow(self) -> None:
        """Reopen the database if the path now leads to another file.

        Raises:
            IndexingError: the file is missing, it has vectors of another model, or this process is writing the old file.
        """
        if self._is_in_snapshot or self._opened.is_current():
            return
        if self._writer is not None:
            raise IndexingError(f"{self.folder}: was deleted or replaced while it was written; add the pictures again")
        before, self._opened = self._opened, self._connect()
        try:
            about = dict(self._opened.database.execute("SELECT name, value FROM about").fetchall())
            self._check_same_model(about)
            self._describe(about)
        except (IndexingError, sqlite3.Error, UnicodeError, KeyError, ValueError) as error:
            self._opened.close()
            self._opened = before
            raise error if isinstance(error, IndexingError) else self._damaged() from None
        before.close()

    def close(self) -> None:
        """Close the database."""
        self._opened.close()

    @contextmanager
    def writing(self, *, wait_s: float = 10.0) -> Iterator[None]:
        """Hold the writer's lock, which is a lock on a file (`Index.writing`)."""
        with ExitStack() as stack:
            with self._disk():
                stack.enter_context(file_lock(self.folder / LOCK, wait_s=wait_s))
            self._upgrade()
            self._drop_unknown_structure()
            self._remove_leftovers()
            self._writer = get_ident()
            try:
                yield
            finally:
                self._writer = None

    def _check_writing(self, what: str) -> None:
        """Raise IndexingError if this thread does not hold the lock. Two writers would overwrite each other's files."""
        if self._writer != get_ident():
            raise IndexingError(
                f"{self.folder}: {what} must be called within `with index.writing():`, by the same thread"
            )

    def _drop_unknown_structure(self) -> None:
        """Delete an ANN structure of an earlier version that this version does not use."""
        about = self._ann_info()
        if about is not None and about.kind != "signs":
            self._set_about(**NOT_BUILT)

    def _leftovers(self) -> list[Path]:
        """Files of interrupted changes, which the database does not refer to."""
        about, file = self._about(), self._file()
        referenced = {path.name for path in file.paths()}
        if "nearly" in about:
            referenced.add(self._ann_path(file.codes_number).name)
        return [path for path in sorted(self.folder.iterdir()) if _NUMBERED(path.name) and path.name not in referenced]

    def _remove_leftovers(self) -> None:
        with self._disk():
            clear_tmp(self.folder)
            for path in self._leftovers():
                path.unlink(missing_ok=True)

    def verify(self) -> list[str]:
        """Faults, and what to do about them (`Index.verify`).

        Damage of files is recorded in the index, unless it cannot be written, so that `repair` compares the checksums.
        """
        faults = self._read_snapshot(self._faults_of_database)
        if faults:  # A damaged database may describe the files incorrectly.
            return faults
        while True:
            paths = self._file().paths()
            faults = self._read_snapshot(self._faults_of_files)
            # Files that another process has just replaced are missing without being damaged.
            if not faults or self._file().paths() == paths:
                break
        if faults:
            self._record_damage()
        return faults

    def _faults_of_database(self) -> list[str]:
        state = " ".join(str(self._one("PRAGMA integrity_check")).split())
        faults = [] if state == "ok" else [f"{DATABASE} is damaged ({state:.300})"]
        if not self._is_old():
            faults += damaged_tables(self._opened.database, form=self._current_format())
        return [f"{fault}; delete it and add the pictures again" for fault in faults]

    def _faults_of_files(self) -> list[str]:
        faults = self._file().faults(self._num_vectors(), None if self._is_old() else self._blocks())
        faults += self._ann_faults()
        if wrong_counts(self._opened.database):
            return [*faults, f"{DATABASE} has wrong counts of its rows; {NEXT_ADD} counts again"]
        num_lost = self._count("lost")
        if num_lost:
            faults.append(f"{num_lost} entries have no vector; {AGAIN}")
        return faults

    def _may_be_damaged(self) -> bool:
        """Whether `verify` recorded damage of files, or a file is missing or too short. The content of files is not read."""
        num, file, about = self._num_vectors(), self._file(), self._ann_info()
        path = self._ann_path(file.codes_number)
        is_ann_whole = about is None or (path.is_file() and about.bytes in {None, path.stat().st_size})
        is_whole = file.is_whole(num) and is_ann_whole and self._one(_NUM_CHECKED) == num
        return not is_whole or self._has_recorded_damage()

    def _ann_faults(self) -> list[str]:
        about, path = self._ann_info(), self._ann_path(self._file().codes_number)
        if about is None:
            return []
        is_whole = path.is_file() and self._about().get("nearly_sha256", "") in {"", sha256_of(path)}
        if is_whole and about.num <= self._num_vectors():
            return []
        return [f"{path.name} is missing or damaged; {NEXT_ADD} rebuilds it"]

    def remarks(self) -> list[str]:
        """Unusual facts that are not faults (`Index.remarks`)."""
        old = "it is of format 1, which has no checksums: not all damage is found; the next addition adds them"
        left = [
            f"{path.name} is left from a change that was interrupted or is under way; the next addition removes it"
            for path in self._leftovers()
        ]
        return [*([old] if self._is_old() else []), *self._file().remarks(self._num_vectors()), *left]

    def _num_bytes(self) -> int:
        return sum(map(_file_size, self.folder.iterdir()))

    def _read_snapshot(self, read: Callable[[], _Read]) -> _Read:
        """The result of `read` for a consistent state. It runs again if another process replaced the files meanwhile."""
        while True:
            with self._lock:
                self._follow()
                self._is_in_snapshot, file = True, None
                try:
                    self._all("BEGIN")
                    file = self._file().path
                    answer = read()
                    if self._opened.is_current():
                        return answer
                except (IndexingError, OSError) as error:
                    self._opened.database.rollback()
                    if self._opened.is_current() and file in {None, self._file().path}:
                        raise error if isinstance(error, IndexingError) else self._damaged() from None
                finally:
                    self._opened.database.rollback()
                    self._is_in_snapshot = False

    def _vectors(self) -> Vectors:
        try:
            return self._file().read(self._num_vectors())
        except (OSError, ValueError):
            raise self._damaged() from None

    def _file(self, number: int | None = None, *, codes: int | None = None) -> VectorFile:
        """The current files of vectors and codes, or those with other numbers."""
        about = self._about()
        try:
            kind = cast(VectorDtype, about.get("kind", "float32"))
            if number is None:
                number, current = int(about["file"]), int(about.get("codes", about["file"]))
                codes = current if codes is None else codes
            return VectorFile(self.folder, number, self.dim, kind, codes=codes)
        except (KeyError, ValueError, TypeError):
            raise self._damaged() from None

    def _blocks(self) -> list[Block]:
        return [
            Block(*row) for row in self._all("SELECT first, num, vectors, integers, scales FROM blocks ORDER BY first")
        ]

    def _upgrade(self) -> None:
        if self._current_format() == FORMAT and self._keeps_counts():
            return
        with self._disk(), self._lock:
            try:
                self._follow()
                if self._current_format() != FORMAT:
                    upgrade(self._opened.database, self._file())
            except ValueError:
                raise self._damaged() from None
        self._count_again(only_if_missing=True)

    def _count_again(self, *, only_if_missing: bool = False) -> None:
        with self._disk(), self._lock, self._opened.database as database:
            database.execute("BEGIN IMMEDIATE")
            if not (only_if_missing and has_counts(database)):
                drop_counts(database)
                keep_counts(database)

    def _keeps_counts(self) -> bool:
        """Whether the database has counts. Databases of earlier versions get them with the first change."""
        if self._counting is not self._opened and self._all("SELECT 1 FROM sqlite_master WHERE name = 'counts'"):
            self._counting = self._opened
        return self._counting is self._opened

    def _count(self, name: str) -> int:
        if self._keeps_counts():
            return int(self._one("SELECT num FROM counts WHERE name = ?", (name,)))
        return int(self._one(COUNTED[name]))

    def _damaged(self) -> IndexingError:
        return IndexingError(f"{self.folder}: is damaged; for details, run: {command('index', 'verify', self.folder)}")

    def _ann_info(self) -> AnnInfo | None:
        try:
            return AnnInfo.from_rows(self._about())
        except ValueError:
            raise self._damaged() from None

    def _ann_path(self, number: int) -> Path:
        return self.folder / f"nearly-{number}"

    def _num_vectors(self) -> int:
        return int(self._one("SELECT coalesce(max(place) + 1, 0) FROM vectors"))

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            with self._lock:  # Another thread may be in a transaction.
                self._follow()
                return self._opened.database.execute(sql, values).fetchall()
        except (sqlite3.Error, UnicodeError) as error:  # Error messages of SQLite contain damaged names.
            raise IndexingError(f"{self.folder}: cannot be read ({error})") from None

    def _set_about(self, **values: str | None) -> None:
        with self._changing() as database:
            set_about(database, **values)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, which may also change table definitions."""
        self._upgrade()
        with self._disk(), self._lock:
            self._follow()
            with self._opened.database as database:
                database.execute("BEGIN IMMEDIATE")
                yield database

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise IndexingError(f"{self.folder}: cannot be written ({error}); it is as it was") from None
        except OSError as error:
            raise IndexingError(f"{self.folder}: cannot be written ({error.strerror}); it is as it was") from None


def _file_size(path: Path) -> int:
    """The size of a file in bytes; 0 if another process has just removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
