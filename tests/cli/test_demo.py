"""What the demo leaves: an index for the page that it ends with."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from diptych.cli import demo
from diptych.index.open_index import open_index
from diptych.inference.loaded import LoadedBundle


def test_the_index_is_the_demos_own(clip: LoadedBundle, photos: Path, tmp_path: Path) -> None:
    for _ in range(2):  # The second replaces the first.
        demo._index(clip, photos, tmp_path / "index")
        with open_index(tmp_path / "index") as index:
            assert len(index) == 6
            assert index.model == clip.identity


def test_it_ends_with_the_page(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo._print_next(tmp_path, sorted(photos.glob("*.png")))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.split() == ["diptych", "serve", str(tmp_path / "bundle"), "--index", str(tmp_path / "index")]


def test_the_commands_that_it_ends_with_run(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `diptych` is not on the path, and from a folder whose name has a space."""
    place = tmp_path / "my demo"
    shutil.copytree(tiny_bundle, place / "bundle")
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    demo._print_next(Path("my demo"), sorted(photos.glob("*.png")))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == 6
    for line in (lines[2], lines[4]):  # The others take longer; all begin alike.
        said = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    assert len({line.split(" ")[0] for line in lines}) == 1
