"""The folder of arrays that are kept."""

import os
from pathlib import Path

import numpy as np

from diptych.core.array_cache import ArrayCache


def test_only_the_user_may_read_what_is_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = ArrayCache(tmp_path / "data")
        cache.put("x", 0, {"values": np.zeros(3)})
    finally:
        os.umask(before)
    (path,) = cache.folder.iterdir()
    assert (cache.folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
