"""Arrays that take long to compute, kept in the cache folder under a key of all that they depend on."""

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
"""Less is computed again: it takes less time than a file in the cache is worth."""
_MAX_BYTES = 4 * 2**30
_LEFT_S = 3600.0
"""A temporary file older than this was left by a process that was killed."""
_KEY = "key"


class ArrayCache:
    """A folder of named arrays. Processes may share it: files are replaced as a whole.

    What was not used for longest is removed when the folder grows beyond its size. A file that is damaged, or not written by
    this class, counts as missing, with a warning. A folder that cannot be written keeps nothing. Only the user may read it:
    arrays hold captions of data that may be private.

    >>> import tempfile
    >>> cache = ArrayCache(Path(tempfile.mkdtemp()))
    >>> cache.put("squares", ["of", 3], {"values": np.arange(3) ** 2})
    >>> cache.get("squares", ["of", 3])["values"].tolist(), cache.get("squares", ["of", 4])
    ([0, 1, 4], None)
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = _MAX_BYTES) -> None:
        try:
            self.folder = folder or cache_folder() / "data"
        except RuntimeError:  # The user has no home, as in some containers.
            self.folder = Path(os.devnull) / "data"
        self.max_bytes = max_bytes

    def get(self, kind: str, key: object) -> dict[str, NDArray[Any]] | None:
        """The arrays that were kept under a key; None if there are none.

        Args:
            kind: begins the name of the file.
            key: anything that `json.dumps` takes and that determines the arrays.
        """
        text, path = self._place(kind, key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                arrays = {name: kept[name] for name in kept.files}
            if str(arrays.pop(_KEY)) != text:
                raise ValueError("another key")
        except FileNotFoundError:
            return None
        except Exception as error:  # numpy and zipfile raise almost anything on damaged files.
            if not isinstance(error, OSError):
                warnings.warn(f"{path}: is damaged; its content is computed again", DiptychWarning, stacklevel=2)
            return None
        with suppress(OSError):
            os.utime(path)
        return arrays

    def put(self, kind: str, key: object, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays under a key. A full or read-only disk is no error."""
        text, path = self._place(kind, key)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(path, mode=0o600) as tmp, tmp.open("wb") as file:
                np.savez(file, **{_KEY: np.array(text)}, **arrays)  # type: ignore[arg-type]  # Its other argument is a boolean.
            make_room(self.folder, "*.npz", max_bytes=self.max_bytes, keep=path)
            for left in self.folder.iterdir():
                if is_tmp(left) and time.time() - left.stat().st_mtime > _LEFT_S:
                    left.unlink(missing_ok=True)
        except OSError:
            return

    def _place(self, kind: str, key: object) -> tuple[str, Path]:
        text = json.dumps(key)
        return text, self.folder / f"{kind}-{sha256(text.encode()).hexdigest()[:32]}.npz"
