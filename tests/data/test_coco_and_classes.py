"""COCO's layout, folders of classes, and paths that are given without a kind."""

from pathlib import Path

import pytest

from diptych.core.errors import DataError
from diptych.data.open_source import open_source
from tests.conftest import draw_photos
from tests.data.makers import class_folder, coco_folder


def test_coco_takes_splits_from_the_files_names(tmp_path: Path) -> None:
    source = open_source(coco_folder(tmp_path / "set"))
    assert [source.split(i) for i in range(4)] == ["train", "train", "train", "val"]
    assert source.key(3) == "val2017/d.png"
    assert source.captions(0) == ("one 0", "one 0")
    one = open_source(f"coco:{tmp_path}/set/annotations/captions_val2017.json")
    assert (len(one), one.split(0)) == (1, "val")


def test_coco_says_what_is_wrong(tmp_path: Path) -> None:
    spec = coco_folder(tmp_path / "set")
    (tmp_path / "set" / "val2017").rename(tmp_path / "set" / "elsewhere")
    with pytest.raises(DataError, match=r"has none of val2017, images/val2017, images; say where"):
        open_source(spec)
    there = f"coco:{tmp_path}/set/annotations/captions_val2017.json?root={tmp_path}/set/elsewhere"
    assert open_source(there).key(0) == "d.png"
    (tmp_path / "set" / "annotations" / "captions_val2017.json").write_text('{"images": []}')
    with pytest.raises(DataError, match=r"is not in COCO's layout .*annotations"):
        open_source(there)
    with pytest.raises(DataError, match="holds no captions_"):
        open_source(f"coco:{tmp_path}")


def test_class_folders_are_captioned_by_templates(tmp_path: Path) -> None:
    source = open_source(class_folder(tmp_path / "set"))
    assert source.classes == ("dog", "sea lion")
    assert source.key(2) == "train/sea_lion/a.png"
    assert source.captions(2) == (
        "a photo of a sea lion",
        "a picture of a sea lion",
        "an image of a sea lion",
        "a sea lion photo",
        "a sea lion picture",
    )
    assert [source.split(i) for i in range(6)] == ["train"] * 4 + ["val"] * 2
    (tmp_path / "templates.txt").write_text("{}\nmy {}\n")
    mine = open_source(f"class-folder:{tmp_path}/set?templates={tmp_path}/templates.txt")
    assert mine.captions(0) == ("dog", "my dog")
    assert mine.templates == ("{}", "my {}")


def test_class_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no class folders with pictures"):
        open_source(f"class-folder:{tmp_path}")
    draw_photos(tmp_path / "set", ["lone.png"])
    with pytest.raises(DataError, match=r"lone\.png is not in a class folder"):
        open_source(f"class-folder:{tmp_path}/set")
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        open_source(f"class-folder:{tmp_path}/bad.zip")
    (tmp_path / "templates.txt").write_text("a dog\n")
    with pytest.raises(DataError, match=r"template 'a dog' has no \{\}"):
        open_source(f"class-folder:{tmp_path}/set?templates={tmp_path}/templates.txt")


def test_what_looks_like_nothing_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looks like no kind of data; specify the kind: KIND:"):
        open_source(str(tmp_path))
    (tmp_path / "results.csv").write_text("x")
    (tmp_path / "captions_x.json").write_text("x")
    with pytest.raises(DataError, match="looks like flickr30k and coco; specify the kind"):
        open_source(str(tmp_path))
