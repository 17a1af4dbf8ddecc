"""Entries of a folder that cannot be read: each is listed, and the others are indexed."""

import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.core import files
from diptych.index.open_index import open_index
from diptych.inference.loaded import LoadedBundle
from diptych.search import scan
from diptych.search.collection import Update
from tests.conftest import as_nobody
from tests.search.makers import names_in, refresh


def test_bad_entries_are_listed_and_the_others_are_indexed(
    clip: LoadedBundle, photos: Path, index_folder: Path
) -> None:
    (photos / "loop").symlink_to("loop")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    (photos / "a.txt").symlink_to("a.txt")
    os.mkfifo(photos / "b.txt")
    os.mkfifo(photos / "pipe.png")
    os.utime(photos / "c.png", (10**10, 10**10))  # In the year 2286.
    with (photos / "sparse.tiff").open("wb") as file:
        file.truncate(20 * 2**30)
    reasons = {
        "loop.jpg": "cannot be read (Too many levels of symbolic links)",
        "pipe.png": "cannot be read (is not a regular file)",
        "sparse.tiff": "cannot be read (has more than 536,870,912 bytes)",
    }
    report = refresh(index_folder, clip, photos)
    assert (report.added, {Path(path).name: reason for path, reason in report.unreadable}) == (6, reasons)
    assert {Path(path).name: reason for path, reason in report.unread_captions} == {
        "a.txt": "cannot be read (Too many levels of symbolic links)",
        "b.txt": "cannot be read (is not a regular file)",
    }
    again = Update(unchanged=6, unreadable=report.unreadable, unread_captions=report.unread_captions)
    assert refresh(index_folder, clip, photos) == again
    with open_index(index_folder) as index:
        stamps = {Path(key).name: stamp.modified_ns for key, stamp in index.stamps().items()}
    assert (stamps["c.png"], set(stamps)) == (2**63 - 1, {"a.png", "b.png", "c.png", "d.png", "e.png", "f.jpg"})


def _deny(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make a folder unreadable, also for root."""
    whole = os.scandir

    def scandir(path: str) -> object:
        if path == str(folder):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_subfolder_that_cannot_be_read_keeps_its_entries(
    clip: LoadedBundle, photos: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(index_folder, clip, photos)
    (photos / "a.png").unlink()
    with monkeypatch.context() as patch:
        _deny(patch, photos / "more")
        report = refresh(index_folder, clip, photos, prune=True)
        told = [(str(photos / "more"), "cannot be read (Permission denied)")]
        assert report == Update(unchanged=4, vanished=1, dropped=1, unreadable=told)
    assert "f.jpg" in names_in(index_folder)
    assert refresh(index_folder, clip, photos, prune=True) == Update(unchanged=5)


def test_permissions_of_a_subfolder(photos: Path) -> None:
    (photos / "more").chmod(0)
    omissions = scan.Omissions()
    for folder in photos.parents:  # pytest's folders are its user's alone.
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    with as_nobody():
        found = [Path(file.key).name for file in scan.scan([photos], omissions=omissions)]
    (photos / "more").chmod(0o755)
    assert found == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert omissions.unreadable == [(str(photos / "more"), "cannot be read (Permission denied)")]
    assert omissions.unread_folders == [str(photos / "more")]


def test_files_and_folders_that_go_during_the_scan(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.scandir

    def scandir(path: str) -> object:
        found = whole(path)
        if path == str(photos):
            inside = list(found)
            (photos / "b.png").unlink()
            shutil.rmtree(photos / "more")
            return _Listed(inside)
        return found

    monkeypatch.setattr(os, "scandir", scandir)
    omissions = scan.Omissions()
    assert [Path(file.key).name for file in scan.scan([photos], omissions=omissions)] == [
        "a.png",
        "c.png",
        "d.png",
        "e.png",
    ]
    assert omissions.unreadable == []


class _Listed(list["os.DirEntry[str]"]):
    def __enter__(self) -> "_Listed":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_what_could_not_be_read_is_tried_again(
    clip: LoadedBundle, photos: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    whole = files.read_regular
    tried = list[str]()

    def refused(path: str, **more: object) -> bytes:
        tried.append(Path(path).name)
        if Path(path).name == "b.png":
            raise OSError(5, "Input/output error")
        return whole(path, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(scan, "read_regular", refused)
        report = refresh(index_folder, clip, photos)
        assert (str(photos / "b.png"), "cannot be read (Input/output error)") in report.unreadable
        assert (report.added, len(report.unreadable)) == (5, 2)
        tried.clear()
        assert len(refresh(index_folder, clip, photos).unreadable) == 1
        assert tried == ["b.png"]  # What cannot be decoded is not read again.
    assert refresh(index_folder, clip, photos) == Update(added=1, unchanged=6)
    # Earlier versions stored it.
    with open_index(index_folder) as index, index.writing():
        stamp = index.stamps()[str(photos / "b.png")]
        index.add([], {}, broken=[(str(photos / "b.png"), stamp, "cannot be read (Permission denied)")])
    assert (refresh(index_folder, clip, photos).copies, "b.png" in names_in(index_folder)) == (1, True)


def test_a_picture_that_cannot_be_read_now_keeps_its_entry(
    clip: LoadedBundle, photos: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(index_folder, clip, photos)
    Image.new("RGB", (9, 9)).save(photos / "b.png")

    def refused(*_: object, **__: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(scan, "read_regular", refused)
        assert len(refresh(index_folder, clip, photos, prune=True).unreadable) == 1
    assert "b.png" in names_in(index_folder)
    assert refresh(index_folder, clip, photos).changed == 1


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_pruning_more_than_half_needs_a_yes(
    clip: LoadedBundle,
    photos: Path,
    index_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refresh(index_folder, clip, photos)
    photos.rename(photos.with_name("elsewhere"))
    photos.mkdir()
    assert refresh(index_folder, clip, photos, prune=True) == Update(vanished=6, is_prune_refused=True)
    arguments = ["index", "add", str(index_folder), str(photos), "--prune"]
    assert main(arguments) == 2
    assert "--prune would drop 6 files, more than half of the index, and dropped none" in capsys.readouterr().err
    assert len(names_in(index_folder)) == 6
    terminal = _Terminal()
    for answer, code, left in (("\n", 2, 6), ("y\n", 0, 0)):
        monkeypatch.setattr(sys, "stdin", _Terminal(answer))
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(arguments) == code
        assert len(names_in(index_folder)) == left
    assert "--prune removes 6 of 6 pictures. Is every disk mounted? Remove them? [y/N]" in terminal.getvalue()


def test_force_prunes_and_half_is_not_more_than_half(clip: LoadedBundle, photos: Path, index_folder: Path) -> None:
    refresh(index_folder, clip, photos)
    for name in "abc":
        (photos / f"{name}.png").unlink()
    assert refresh(index_folder, clip, photos, prune=True).dropped == 3
    shutil.rmtree(photos / "more")
    (photos / "d.png").unlink()
    assert main(["index", "add", str(index_folder), str(photos), "--prune", "--force"]) == 0
    assert names_in(index_folder) == {"e.png"}
