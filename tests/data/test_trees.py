"""Folders and zips as people have them: with files of other programs, links, and names in two spellings."""

import zipfile
from pathlib import Path
from unicodedata import normalize

import pytest

from diptych.data.open_source import open_source
from tests.conftest import draw_photos
from tests.data.makers import class_folder, keys_of


def _zipped(folder: Path) -> Path:
    """A folder's pictures in a zip beside it."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for picture in sorted(folder.rglob("*.png")):
            file.write(picture, picture.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("is_zip", [False, True])
def test_files_of_other_programs_are_no_pictures(tmp_path: Path, is_zip: bool) -> None:
    clean = open_source(class_folder(tmp_path / "set"))
    for folder, names in {".thumbs/x": ["a.png"], "@eaDir": ["b.png"], "__MACOSX/dog": ["c.png"]}.items():
        draw_photos(tmp_path / "set" / folder, names)
    draw_photos(tmp_path / "set" / "train" / "dog", ["._a.png"])
    place = _zipped(tmp_path / "set") if is_zip else tmp_path / "set"
    source = open_source(f"class-folder:{place}")
    assert (keys_of(source), source.classes) == (keys_of(clean), clean.classes)
    assert [source.split(i) for i in range(len(source))] == ["train"] * 4 + ["val"] * 2
    (oddity,) = source.oddities
    assert (oddity.what, oddity.done, oddity.num) == ("hidden files and files of other programs", "left out", 4)
    assert clean.oddities == ()


@pytest.mark.parametrize("is_zip", [False, True])
def test_one_name_in_two_spellings_is_one_class(tmp_path: Path, is_zip: bool) -> None:
    for form in ("NFC", "NFD"):
        draw_photos(tmp_path / "set" / normalize(form, "café"), [f"{form}.png"])
    draw_photos(tmp_path / "set" / "dog", ["a.png"])
    place = _zipped(tmp_path / "set") if is_zip else tmp_path / "set"
    source = open_source(f"class-folder:{place}")
    assert source.classes == ("café", "dog")
    assert {source.key(i) for i in range(3) if source.label(i) == 0} == {
        normalize("NFC", "café/") + "NFC.png",
        normalize("NFD", "café/") + "NFD.png",
    }
    assert [(oddity.done, oddity.num) for oddity in source.oddities] == [("merged", 1)]


def test_linked_class_folders_are_followed_and_loops_are_cut(tmp_path: Path) -> None:
    draw_photos(tmp_path / "set" / "dog" / "old", ["a.png"])
    draw_photos(tmp_path / "elsewhere", ["b.png"])
    for name, target in {
        "cat": tmp_path / "elsewhere",
        "tiger": tmp_path / "elsewhere",
        "dog/up": tmp_path / "set",
        "dog/old/self": Path("self"),
    }.items():
        (tmp_path / "set" / name).symlink_to(target)
    source = open_source(f"class-folder:{tmp_path / 'set'}")
    assert keys_of(source) == ["cat/b.png", "dog/old/a.png"]
    assert [str(oddity) for oddity in source.oddities] == [
        "links to folders: followed (1; cat)",
        "links to a folder that another link led to: left out (1; tiger)",
        "links that lead back to a folder above them: left out (1; dog/up)",
    ]


def test_two_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    for name in "ab":
        draw_photos(tmp_path / "set" / name, [f"{name}.png"])
    (tmp_path / "set/a/to").symlink_to(tmp_path / "set/b")
    (tmp_path / "set/b/to").symlink_to(tmp_path / "set/a")
    source = open_source(f"class-folder:{tmp_path / 'set'}")
    assert keys_of(source) == ["a/a.png", "a/to/b.png", "b/b.png", "b/to/a.png"]
    assert sum(oddity.num for oddity in source.oddities if oddity.done == "followed") == 2


def test_a_name_that_stands_in_a_zip_again_is_one_picture(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["a.png", "b.png"])
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.mkdir("cat.png")
        file.write(tmp_path / "a.png", "cat.png/a.png")
        file.write(tmp_path / "a.png", "dog/a.png")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.write(tmp_path / "b.png", "dog/a.png")
    source = open_source(f"class-folder:{tmp_path / 'set.zip'}")
    assert keys_of(source) == ["cat.png/a.png", "dog/a.png"]
    assert source[1].image == (tmp_path / "b.png").read_bytes()
    assert [str(oddity) for oddity in source.oddities] == [
        "names that occur repeatedly in the zip: read from the last entry (1; dog/a.png)"
    ]
