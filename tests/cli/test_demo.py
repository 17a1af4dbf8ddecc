"""What the demo leaves: an index for the page that it ends with."""

from pathlib import Path

import pytest

from diptych.cli import demo
from diptych.index.choice import open_index
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
