"""Which files of a folder are indexed, and what is said of the others."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.data.open_source import open_source
from diptych.data.tools.audit import audit
from diptych.images.formats import FORMATS, LeftOut, remedy
from diptych.index.filters import parse_filter
from diptych.index.open_index import open_index
from diptych.inference.loaded import LoadedBundle
from diptych.search import scan as scanning
from diptych.search.collection import Update
from tests.conftest import draw_photos
from tests.images.hostile import encoded
from tests.search.makers import names_in, refresh

_NEW = {".jfif": "JPEG", ".jpe": "JPEG", ".jp2": "JPEG2000", ".avif": "AVIF", ".heic": "HEIF", ".pgm": "PPM"}


def test_every_format_that_can_be_opened_is_indexed(clip: LoadedBundle, tmp_path: Path, index_folder: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (suffix, form) in enumerate(_NEW.items()):
        (folder / f"a{suffix.upper()}").write_bytes(encoded(form, width=20 + number))
    assert refresh(index_folder, clip, folder) == Update(added=len(_NEW))
    with open_index(index_folder) as index:
        for number, suffix in enumerate(_NEW):
            (entry,) = index.entries(parse_filter(f"path like '%{suffix.upper()}'"))
            assert (entry.width, entry.height) == (20 + number, 12)
            direct = clip.encode_images([entry.key])[0]
            np.testing.assert_allclose(index.vectors([entry.digest])[entry.digest], direct, atol=1e-6)


def _add_others(photos: Path) -> list[LeftOut]:
    """RAW photos and other formats; what is to be said of them."""
    for name in ("1.CR2", "2.cr2", "more/3.cr2", "4.cr2", "5.nef", "6.psd", "7.xmp", ".8.nef"):
        Image.new("RGB", (9, 9)).save(photos / name, "TIFF")
    (photos / "folder.cr2").mkdir()
    first = tuple(str(photos / name) for name in ("1.CR2", "2.cr2", "4.cr2"))
    return [
        LeftOut(suffix=".cr2", num=4, examples=first, remedy=remedy(".cr2") or ""),
        LeftOut(suffix=".nef", num=1, examples=(str(photos / "5.nef"),), remedy=remedy(".nef") or ""),
        LeftOut(suffix=".psd", num=1, examples=(str(photos / "6.psd"),), remedy=remedy(".psd") or ""),
    ]


def test_what_is_left_out_is_counted_with_its_remedy(
    clip: LoadedBundle, photos: Path, index_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = _add_others(photos)
    (photos / "holiday.jpg").mkdir()
    draw_photos(photos / "holiday.jpg", ["g.png", "h.png"])
    report = refresh(index_folder, clip, photos)
    assert (report.added, report.copies, report.left_out, report.unreadable) == (6, 2, left_out, [])
    assert main(["index", "add", str(index_folder), str(photos)]) == 0
    said = capsys.readouterr().err
    assert (
        f"left out: 4 .cr2 ({photos}/1.CR2, {photos}/2.cr2, {photos}/4.cr2, ...): RAW photos are not read; export"
        in said
    )
    assert "left out: 1 .psd" in said
    assert main(["index", "add", str(index_folder), str(photos), "--json"]) == 0
    assert [left["num"] for left in json.loads(capsys.readouterr().out)["left_out"]] == [4, 1, 1]


def test_heic_without_its_extra_is_counted(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "a.heic").write_bytes(encoded("HEIF"))
    known = {suffix: form for suffix, form in FORMATS.items() if form != "HEIF"}
    monkeypatch.setattr("diptych.images.formats.FORMATS", known)
    monkeypatch.setattr(scanning, "IMAGE_SUFFIXES", frozenset(known))
    omissions = scanning.Omissions()
    assert len(list(scanning.scan([photos], omissions=omissions))) == 6
    (left,) = omissions.formats.left_out()
    assert (left.suffix, left.num, left.remedy) == (".heic", 1, "pip install 'diptych[heic]'")


def test_rank_images_and_audit_count_them_too(
    clip: LoadedBundle, tiny_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = _add_others(photos)
    (photos / "holiday.jpg").mkdir()
    draw_photos(photos / "holiday.jpg", ["g.png"])
    ranking = clip.rank_images("red", photos)
    assert (ranking.left_out, ranking.skipped, len(ranking.results)) == (tuple(left_out), (), 7)
    assert main(["rank-images", str(tiny_bundle), str(photos), "red"]) == 0
    assert "left out: 4 .cr2" in capsys.readouterr().err
    for name in ("a", "b", "c", "d", "e", "more/f", "holiday.jpg/g"):
        (photos / f"{name}.txt").write_text("a caption", "utf-8")
    found = audit(open_source(f"text-folder:{photos}"))
    assert (found.num_samples, found.unreadable) == (7, ())
    counted = {oddity.what: (oddity.num, oddity.done) for oddity in found.oddities}
    assert counted[".cr2 files"] == (4, f"left out: {remedy('.cr2')}")
    assert counted[".psd files"] == (1, f"left out: {remedy('.psd')}")


def test_patterns_exclude_files_and_folders(
    clip: LoadedBundle, photos: Path, index_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_photos(photos / "thumbnails", ["x.png"])
    draw_photos(photos / "2019" / "raw", ["y.png"])
    draw_photos(photos, ["a.thumb.png"])
    draw_photos(photos / "@eaDir", ["z.png"])
    (photos / ".hidden.png").write_bytes(b"")
    (photos / ".DS_Store").write_bytes(b"")
    report = refresh(index_folder, clip, photos)
    assert (report.hidden, report.excluded) == (2, 0)
    assert names_in(index_folder) == {
        "a.png",
        "b.png",
        "c.png",
        "d.png",
        "e.png",
        "f.jpg",
        "x.png",
        "y.png",
        "a.thumb.png",
    }
    report = refresh(index_folder, clip, photos, exclude=("thumbnails", "*.thumb.*", "20??/raw"), prune=True)
    assert (report.hidden, report.excluded, report.dropped, report.unchanged) == (2, 3, 3, 6)
    assert names_in(index_folder) == {"a.png", "b.png", "c.png", "d.png", "e.png", "f.jpg"}
    patterns = ["--exclude", "thumbnails", "--exclude", "*.thumb.png", "--exclude", "2019/*"]
    assert main(["index", "add", str(index_folder), str(photos), *patterns]) == 0
    said = capsys.readouterr().out
    assert "hidden pictures and folders, and those of other programs: 2; excluded pictures and folders: 3" in said
    assert len(names_in(index_folder)) == 6
