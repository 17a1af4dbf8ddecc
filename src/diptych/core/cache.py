"""Where Diptych keeps what can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/diptych`, or `~/.cache/diptych`. It need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"
