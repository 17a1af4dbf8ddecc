"""Which folders are classes: below lone folders and splits, as the user says, in the order of their numbers."""

import warnings
from pathlib import Path

import pytest

from diptych.core.errors import DataError, DiptychWarning
from diptych.data.open_source import open_source
from diptych.data.sources.identity import fingerprint_data
from diptych.data.tools.pack import pack
from tests.conftest import draw_photos


def _set(folder: Path, *classes: str) -> Path:
    for name in classes:
        draw_photos(folder / name, ["a.png"])
    return folder


def test_a_lone_folder_above_the_classes_is_looked_into(tmp_path: Path) -> None:
    source = open_source(f"class-folder:{_set(tmp_path / 'set', 'archive/data/cat', 'archive/data/dog')}")
    assert source.classes == ("cat", "dog")
    assert source.key(0) == "archive/data/cat/a.png"
    assert str(source.oddities[0]) == "lone folders above the classes: looked into (2; archive, archive/data)"
    below = open_source(f"class-folder:{_set(tmp_path / 'splits', 'set/train/cat', 'set/train/dog', 'set/val/dog')}")
    assert (below.classes, [below.split(i) for i in range(3)]) == (("cat", "dog"), ["train", "train", "val"])


def test_a_lone_split_stays_a_split(tmp_path: Path) -> None:
    source = open_source(f"class-folder:{_set(tmp_path / 'set', 'train/cat', 'train/dog')}")
    assert (source.classes, source.split(0), source.oddities) == (("cat", "dog"), "train", ())


def test_a_single_class_is_said(tmp_path: Path) -> None:
    with pytest.warns(
        DiptychWarning, match="all pictures are of one class, 'sea lion'; there is no other class to distinguish"
    ):
        assert open_source(f"class-folder:{_set(tmp_path / 'set', 'sea_lion')}").classes == ("sea lion",)


def test_splits_beside_classes_are_refused_until_the_classes_are_named(tmp_path: Path) -> None:
    folder = _set(tmp_path / "set", "train/cat", "train/dog", "val/cat", "extra/bird", "more/bird")
    with pytest.raises(DataError, match=r"train and val are next to extra, more, .* \?classes=a,b"):
        open_source(f"class-folder:{folder}")
    inside = open_source(f"class-folder:{folder}?classes=cat,dog")
    assert [inside.key(i) for i in range(len(inside))] == ["train/cat/a.png", "train/dog/a.png", "val/cat/a.png"]
    assert [inside.split(i) for i in range(3)] == ["train", "train", "val"]
    assert str(inside.oddities[0]).startswith("pictures outside the folders of ?classes: left out (2; extra/bird/a.png")
    outside = open_source(f"class-folder:{folder}?classes=train,extra")
    assert (outside.classes, outside.split(0)) == (("extra", "train"), None)
    with pytest.raises(DataError, match=r"unknown class folder 'dig'; did you mean 'dog'\? Known: cat, dog"):
        open_source(f"class-folder:{folder}?classes=cat,dig")


def test_a_class_may_be_called_like_one_split(tmp_path: Path) -> None:
    source = open_source(f"class-folder:{_set(tmp_path / 'set', 'bus', 'train')}")
    assert (source.classes, source.split(0)) == (("bus", "train"), None)


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    folder = _set(tmp_path / "set", "class10", "class2", "class1", "10", "9", "b")
    now = open_source(f"class-folder:{folder}")
    assert now.classes == ("9", "10", "b", "class1", "class2", "class10")
    assert {now.key(i): now.label(i) for i in range(6)}["class10/a.png"] == 5
    before = open_source(f"class-folder:{folder}?order=text")
    assert before.classes == ("10", "9", "b", "class1", "class10", "class2")
    assert fingerprint_data(now) != fingerprint_data(before), "so no run is resumed with other numbers"
    pack(before, tmp_path / "packed")
    assert open_source(f"packed:{tmp_path / 'packed'}").classes == before.classes
    with pytest.raises(DataError, match="order is 'number'; it must be text"):
        open_source(f"class-folder:{folder}?order=number")


def test_two_classes_warn_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_source(f"class-folder:{_set(tmp_path / 'set', 'cat', 'dog')}").classes) == 2
