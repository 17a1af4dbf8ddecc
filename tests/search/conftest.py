"""A place for an index."""

from pathlib import Path

import pytest


@pytest.fixture
def index_folder(tmp_path: Path) -> Path:
    """A folder that has no index yet."""
    return tmp_path / "index"
