"""Create an index in a folder. A lock makes sure that only one process does so."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from diptych.core.errors import IndexingError
from diptych.core.files import atomic_write, file_lock, is_tmp
from diptych.index.local import LocalIndex
from diptych.index.local_store import LOCK
from diptych.index.row_counts import keep_counts
from diptych.index.tables import BLOCKS, DATABASE, FORMAT, SCHEMA, holds_local_index, set_about
from diptych.index.vector_file import VectorDtype, VectorFile


def create_local_index(
    folder: Path, *, dim: int, model: str, bundle: str, kind: VectorDtype = "float32", aliases: Sequence[str] = ()
) -> LocalIndex:
    """Create an empty index in a folder that is empty or does not exist.

    Args:
        folder: the folder to create.
        dim: embedding dimension.
        model: identity of the model that computes the vectors.
        bundle: path of the bundle of the model.
        kind: number format of the stored vectors.
        aliases: other names of the same model.

    Raises:
        IndexingError: the folder contains an index, which another process may just have created, or other files; or it
            cannot be written.
        BusyError: another process has been creating the index for ten seconds.
    """
    file = VectorFile(folder, 0, dim, kind)
    about = {"format": FORMAT, "dim": dim, "model": model, "bundle": bundle, "kind": kind, "file": 0}
    known = {"aliases": json.dumps(list(aliases))} if aliases else {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_empty(folder, file)  # Check before the lock file is written into the folder.
        with file_lock(folder / LOCK, wait_s=10):
            _check_empty(folder, file)
            file.create()
            with atomic_write(folder / DATABASE) as tmp, closing(sqlite3.connect(tmp)) as database:
                database.executescript(f"{SCHEMA}{BLOCKS}")
                keep_counts(database)
                set_about(database, **{name: str(value) for name, value in about.items()}, **known)
                database.commit()
                # Set here, so that processes that open the index at the same time need not change the mode.
                database.execute("PRAGMA journal_mode = WAL")
    except (OSError, sqlite3.Error, UnicodeEncodeError) as error:
        raise IndexingError(f"{folder}: cannot be written ({error})") from None
    return LocalIndex(folder)


def _check_empty(folder: Path, file: VectorFile) -> None:
    """Raise IndexingError if the folder contains an index, or files that are not left from an interrupted creation."""
    left_over = {LOCK, f"{LOCK}.holder", file.path.name, "codes-0.i8", "codes-0.f32"}
    if holds_local_index(folder):
        raise IndexingError(f"{folder}: holds an index already")
    if any(path.name not in left_over and not _is_tmp(path) for path in folder.iterdir()):
        raise IndexingError(f"{folder}: is not empty and holds no index")


def _is_tmp(path: Path) -> bool:
    """Whether a path is a temporary file or the SQLite log of one."""
    return any(is_tmp(path.with_name(path.name.removesuffix(suffix))) for suffix in ("", "-wal", "-shm", "-journal"))
