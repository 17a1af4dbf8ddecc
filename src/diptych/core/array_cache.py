"""A cache of arrays that take long to compute; the key contains everything that they depend on."""

import json
import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.core.cache import cache_folder, make_room
from diptych.core.errors import DiptychWarning
from diptych.core.files import atomic_write, is_tmp

MIN_ROWS = 10_000
"""Arrays with fewer rows are not worth a file in the cache: they are quickly computed again."""
_MAX_BYTES = 4 * 2**30
_STALE_S = 3600.0
"""A temporary file older than this was left by a process that was killed."""
_KEY = "key"


class ArrayCache:
    """A folder of named arrays, which several processes may share: files are replaced atomically.

    The least recently used files are removed when the folder grows beyond its maximum size. A file that is damaged, or that
    this class did not write, counts as missing and causes a warning. If the folder cannot be written, nothing is cached. The
    folder is readable only by its owner, because arrays may contain captions of private data.

    Args:
        folder: the folder; by default `data` in the cache folder.
        max_bytes: maximum size of all files together.

    >>> import tempfile
    >>> cache = ArrayCache(Path(tempfile.mkdtemp()))
    >>> cache.put("squares", ["of", 3], {"values": np.arange(3) ** 2})
    >>> cache.get("squares", ["of", 3])["values"].tolist(), cache.get("squares", ["of", 4])
    ([0, 1, 4], None)
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = _MAX_BYTES) -> None:
        try:
            self.folder = folder or cache_folder() / "data"
        except RuntimeError:  # The user has no home folder, as in some containers.
            self.folder = Path(os.devnull) / "data"
        self.max_bytes = max_bytes

    def get(self, kind: str, key: object) -> dict[str, NDArray[Any]] | None:
        """Return the arrays stored under a key; None if there are none.

        Args:
            kind: prefix of the file name.
            key: a value that determines the arrays and that `json.dumps` accepts.
        """
        text, path = self._locate(kind, key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if str(arrays.pop(_KEY)) != text:
                raise ValueError("another key")
        except FileNotFoundError:
            return None
        except Exception as error:  # NumPy and zipfile raise exceptions of many types on damaged files.
            if not isinstance(error, OSError):
                warnings.warn(f"{path}: is damaged; its content is computed again", DiptychWarning, stacklevel=2)
            return None
        with suppress(OSError):
            os.utime(path)
        return arrays

    def put(self, kind: str, key: object, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store arrays under a key. Does nothing if the disk is full or read-only.

        Args:
            kind: prefix of the file name.
            key: a value that determines the arrays and that `json.dumps` accepts.
            arrays: the arrays by name.
        """
        text, path = self._locate(kind, key)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(path, mode=0o600) as tmp, tmp.open("wb") as file:
                np.savez(file, **{_KEY: np.array(text)}, **arrays)  # type: ignore[arg-type]  # Its other keyword is a boolean.
            make_room(self.folder, "*.npz", max_bytes=self.max_bytes, keep=path)
            for file_path in self.folder.iterdir():
                if is_tmp(file_path) and time.time() - file_path.stat().st_mtime > _STALE_S:
                    file_path.unlink(missing_ok=True)
        except OSError:
            return

    def _locate(self, kind: str, key: object) -> tuple[str, Path]:
        text = json.dumps(key)
        return text, self.folder / f"{kind}-{sha256(text.encode()).hexdigest()[:32]}.npz"
