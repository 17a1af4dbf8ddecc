"""Commands print to the streams of their own test, and may run in an empty folder."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _fresh_console(fresh_console: None) -> None:
    """Of every command here."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands run in an empty folder, beside what the test made."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
