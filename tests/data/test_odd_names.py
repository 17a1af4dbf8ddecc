"""Files that are no files, and names that nobody expects."""

import json
import os
from pathlib import Path

import pytest

from diptych.core.errors import DataError
from diptych.data.open_source import SOURCES, open_source
from diptych.data.sources.splits import take_split
from diptych.data.tools.audit import audit
from diptych.data.tools.pack import pack
from diptych.data.tools.write_shards import write_shards
from diptych.evaluation.zero_shot import prompt_hash
from tests.conftest import draw_photos
from tests.data.makers import ODD_NAMES, broken, class_folder, odd_set


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    class_folder(tmp_path / "set")
    for path in ("train/dog/pipe.png", "val/dog/pipe.png"):
        os.mkfifo(tmp_path / "set" / path)
    (tmp_path / "set/train/dog/zero.png").symlink_to("/dev/zero")
    (tmp_path / "set/train/dog/gone.png").symlink_to("nowhere")
    (tmp_path / "set/train/dog/loop.png").symlink_to("loop.png")
    (tmp_path / "set/train/dog/folder.png").mkdir()
    source = open_source(f"class-folder:{tmp_path / 'set'}")
    assert (len(source), len(broken(source))) == (11, 5)
    assert len(audit(source).unreadable) == 5
    assert len(pack(source, tmp_path / "packed").skipped) == 5
    assert len(write_shards(source, tmp_path / "tars").skipped) == 5
    for name in "ab":  # By size they may be copies of each other.
        os.mkfifo(tmp_path / f"{name}.png")
    (tmp_path / "rows.csv").write_text("image,caption\na.png,x\nb.png,y\n", "utf-8")
    pipes = open_source(f"csv:{tmp_path}/rows.csv")
    assert len(take_split(pipes, "all")) == len(broken(pipes)) == 2
    for fraction in (0.2, 0.4, 0.6, 0.8):
        with pytest.raises(DataError, match="no split 'other'"):
            take_split(pipes, "other", val_fraction=fraction)


@pytest.mark.parametrize("kind", ["csv", "json", "tsv-folder", "coco", "class-folder", "shards"])
def test_odd_names_are_names(kind: str, tmp_path: Path) -> None:
    source = open_source(odd_set(tmp_path / "set", kind))
    num_hidden = 1  # A folder called "..two" is hidden.
    num_expected = {"csv": 11, "tsv-folder": 13, "class-folder": len(ODD_NAMES) - num_hidden}
    assert len(source) == num_expected.get(kind, len(ODD_NAMES))
    assert broken(source) == []
    assert len(pack(source, tmp_path / "packed").skipped) == 0
    packed = open_source(f"packed:{tmp_path / 'packed'}")
    assert [packed.key(i) for i in range(len(packed))] == [source.key(i) for i in range(len(source))]
    assert packed.classes == source.classes
    assert write_shards(source, tmp_path / "tars").num_samples == len(source)


@pytest.mark.parametrize(
    "name", ["a\0.png", "a\0/b.png", "\ud800/a.png", "x" * 5000, "y/" * 3000 + "z.png", "", ".", ".."]
)
def test_names_that_no_file_can_have_are_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"image": name, "caption": "x"}]), "utf-8")
    with pytest.raises(DataError, match="1 of 1 images are not under"):
        open_source(f"json:{tmp_path / 'rows.json'}")


@pytest.mark.parametrize("kind", [*SOURCES, ""])
def test_places_that_no_disk_can_have(kind: str) -> None:
    colon = ":" * bool(kind)
    for place in ("/" + "x" * 5000, "/nowhere\0/x.json"):
        with pytest.raises(DataError):
            open_source(f"{kind}{colon}{place}")


def test_a_path_may_go_up(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["up.png"])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rows.csv").write_text("image,caption\n../up.png,x\n../sub/../up.png,y\n", "utf-8")
    source = open_source(f"csv:{tmp_path}/sub/rows.csv")
    assert [source.key(i) for i in range(2)] == ["../up.png", "../sub/../up.png"]
    assert broken(source) == []


def test_names_of_classes_that_are_not_utf8_are_text(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"caf\xe8", b"\x81_x", "caf\u00e9 au lait".encode()):
        draw_photos(tmp_path / os.fsdecode(name), ["a.png", "b.png"])
    source = open_source(f"class-folder:{tmp_path}")
    assert set(source.classes) == {"caf\u00e9", "caf\u00e8", "\ufffd x", "caf\u00e9 au lait"}
    assert broken(source) == []
    assert all(caption.encode() for i in range(len(source)) for caption in source.captions(i))


def test_lone_surrogates_of_a_table_have_a_prompt_hash() -> None:
    assert prompt_hash(["caf\udce9"], ["a {}"]) == "93811bc3ebec"
    assert prompt_hash(["caf\u00e9"], ["a {}"]) == "24c5413e7300"
