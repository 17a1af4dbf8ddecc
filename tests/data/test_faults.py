"""A hostile world: whatever happens to a file or a folder, a source says so on one line, or counts it, and never hangs."""

import gzip
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych.core.errors import DataError, DiptychWarning
from diptych.data.open_source import open_source
from diptych.data.tools.pack import pack
from tests.conftest import as_nobody, draw_photos
from tests.data.makers import MAKERS, broken, coco_folder, csv_file, shards_folder


def _fate(spec: str) -> tuple[str, int]:
    """What a user is told of the source, and how many readable samples are left."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            source = open_source(spec)
        except DataError as error:
            return str(error), 0
    reasons = broken(source)
    return "\n".join([*(str(warning.message) for warning in said), *reasons]), len(source) - len(reasons)


def _entries(folder: Path) -> list[Path]:
    """Files and folders, of many pictures one."""
    for index in folder.rglob("*.index.npz"):
        index.unlink()
    return sorted(path for path in folder.rglob("*") if path.suffix != ".png" or path.name == "a.png")


# Permissions


def _json_file(folder: Path) -> str:
    csv_file(folder)
    rows = [{"image": f"{name}.png", "caption": name} for name in "abcd"]
    (folder / "rows.json").write_text(json.dumps(rows), "utf-8")
    return f"json:{folder / 'rows.json'}"


def _flickr30k(folder: Path) -> str:
    draw_photos(folder / "images", ["a.png", "b.png"])
    (folder / "results.csv").write_text("image| number| caption\na.png| 0| one\nb.png| 0| two\n", "utf-8")
    images = [{"filename": f"{name}.png", "split": "train", "sentences": [{"raw": "x"}]} for name in "ab"]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}), "utf-8")
    return f"flickr30k:{folder}"


ALL: dict[str, Callable[[Path], str]] = {**MAKERS, "json": _json_file, "flickr30k": _flickr30k}


@pytest.mark.parametrize("kind", ALL)
def test_whatever_may_not_be_read_is_said(kind: str, open_place: Path) -> None:
    """Each file and each folder in its turn: nothing of it is lost in silence."""
    place = open_place / "here"
    place.mkdir()
    spec = ALL[kind](place / "set")
    (_, whole), num_said = _fate(spec), 0
    assert whole > 0
    for path in _entries(place):
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            with as_nobody():
                said, left = _fate(spec)
        finally:
            path.chmod(mode)
        assert left == whole or "permission denied" in said.lower() or (kind.startswith("hf") and not left), path
        num_said += left < whole
    assert num_said >= {"class-folder in a zip": 1}.get(kind, 2)


# Damage


@pytest.mark.parametrize("harm", ["half", "empty", "noise"])
@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in {"mix", "hf with labels"}])
def test_whatever_is_damaged_is_said(kind: str, harm: str, tmp_path: Path) -> None:
    """Each file in its turn. Half of a table of lines is a table; its other half cannot be missed."""
    place = tmp_path / "here"
    place.mkdir()
    spec = ALL[kind](place / "set")
    (_, whole), num_said = _fate(spec), 0
    for path in _entries(place):
        if path.is_dir() or (harm == "half" and path.suffix in {".txt", ".tsv", ".csv"}):
            continue
        content = path.read_bytes()
        third = len(content) // 3
        noise = content[:third] + b'\xff\x00\xfe"{[<\n' * 3 + content[third:]
        path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "noise": noise}[harm])
        said, left = _fate(spec)
        assert left == whole or said, path
        assert left or "\n" not in said, path
        num_said += bool(said)
        path.write_bytes(content)
        _entries(place)  # An index of the damaged tar goes.
    assert num_said


def test_a_header_in_the_midst_of_a_tar_that_is_none_is_counted(tmp_path: Path) -> None:
    spec = shards_folder(tmp_path / "set")
    tar = tmp_path / "set" / "tars" / "00000.tar"
    with tarfile.open(tar) as opened:
        second = next(member for member in opened if member.name.startswith("000000001")).offset
    content = bytearray(tar.read_bytes())
    content[second : second + 512] = b"\xaa" * 512
    tar.write_bytes(content)
    with pytest.warns(DiptychWarning, match="1 with a damaged header, and what comes after it"):
        assert len(open_source(spec)) == 2


def test_a_packed_tar_is_none(tmp_path: Path) -> None:
    shards_folder(tmp_path / "set")
    tar = tmp_path / "set" / "tars" / "00000.tar"
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(DataError, match=r"00000\.tar: is compressed, .* unpack it once: gunzip "):
        open_source(f"shards:{tar}")


@pytest.mark.parametrize("harm", ["bytes", "password"])
def test_a_zip_whose_pictures_are_damaged_or_locked(tmp_path: Path, harm: str) -> None:
    draw_photos(tmp_path / "set", ["a.png"])
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("dog/b.png", b"abcabc" * 500)
        file.write(tmp_path / "set" / "a.png", "frog/a.png")
    content = bytearray(path.read_bytes())
    if harm == "bytes":
        content[39:60] = b"\xff" * 21
    else:
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    (reason,) = broken(open_source(f"class-folder:{path}"))
    assert "set.zip: dog/b.png: " in reason


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["a.png", "b.png", "c.png"])
    path = tmp_path / "set.csv"
    for separator in (",", "\t", " "):
        rows = ["image,caption", 'a.png,"one', "more", 'of",', 'b.png,"two', "c.png,three"]
        path.write_text("\n".join(rows).replace(",", separator), "utf-8")
        with pytest.raises(DataError, match=r"set\.csv: a quote that line 5 opens is never closed: \['b\.png', 'two"):
            open_source(f"csv:{path}?separator={separator.replace(' ', '%20')}")


@pytest.mark.parametrize("content", ["[" * 200_000, '[{"image": ' + "1" * 5000 + "}]", '[{"image": "a.png", "cap'])
def test_json_that_breaks_the_reader(tmp_path: Path, content: str) -> None:
    for name in ("rows.json", "rows.jsonl", "captions_x.json", "dataset_x.json"):
        path = tmp_path / name.replace(".", "-") / name
        path.parent.mkdir()
        (path.parent / "images").mkdir()
        path.write_text(content, "utf-8")
        kind, where = {"captions_x.json": ("coco", path), "dataset_x.json": ("flickr30k", path.parent)}.get(
            name, ("json", path)
        )
        with pytest.raises(DataError, match=name) as caught:
            open_source(f"{kind}:{where}")
        assert "\n" not in str(caught.value)


def test_tables_of_flickr_in_another_encoding(tmp_path: Path) -> None:
    for name, content in (
        ("results.csv", "image| number| caption\na.png| 0| caf\xe9\n"),
        ("captions.txt", "image,caption\na.png,caf\xe9\n"),
    ):
        folder = tmp_path / name
        draw_photos(folder, ["a.png"])
        (folder / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=rf"{name}: is not UTF-8 text .*; save it as UTF-8"):
            open_source(f"flickr8k:{folder}")


@pytest.mark.parametrize(
    "content", ['{"format_version": 1}', '{"format_version": 1, "checksums": {"00000": "x"}}', "[]"]
)
def test_a_pack_that_says_too_little(tmp_path: Path, content: str) -> None:
    (tmp_path / "pack.json").write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"pack\.json: is damaged"):
        open_source(f"packed:{tmp_path}")
    with pytest.raises(DataError, match=r"pack\.json: is damaged"):
        pack(open_source("shapes:2"), tmp_path)


@pytest.mark.parametrize(
    ("labels", "says"), [([0], "12 pictures and 11 labels|2 pictures and 1"), ([0, 99], "label 99 of")]
)
def test_labels_of_cifar_that_do_not_fit(tmp_path: Path, labels: list[int], says: str) -> None:
    spec = MAKERS["cifar10"](tmp_path / "set")
    path = next((tmp_path / "set").rglob("test_batch"))
    batch = pickle.loads(path.read_bytes(), encoding="bytes")
    batch[b"labels"] = labels
    path.write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match=says):
        open_source(spec)


def test_a_pack_that_is_cut_off_in_use_does_not_kill_the_process(tmp_path: Path) -> None:
    """Touching a map beyond the end of its file is a SIGBUS."""
    pack(open_source(csv_file(tmp_path / "set")), tmp_path / "out", image_px=32)
    source = open_source(f"packed:{tmp_path / 'out'}")
    assert broken(source) == []
    os.truncate(tmp_path / "out" / "00000.pixels", 0)
    assert all("00000.pixels: was truncated while it was read; pack again" in reason for reason in broken(source))
    assert len(broken(source)) == 4


# Files that disagree


def test_flickrs_files_that_name_other_images(flickr_folder: Path) -> None:
    karpathy = flickr_folder / "dataset_flickr30k.json"
    images = json.loads(karpathy.read_text("utf-8"))["images"]
    images[0]["filename"] = "9.jpg"
    karpathy.write_text(json.dumps({"images": images}), "utf-8")
    said = r"1 images that dataset_flickr30k\.json alone names are left out because they have no captions "
    said += r"\(the first: 9\.jpg\); "
    with pytest.warns(
        DiptychWarning, match=said + r"1 images that results\.csv alone names are put into a split by th"
    ):
        source = open_source(f"flickr30k:{flickr_folder}")
    assert [source.split(i) for i in range(4)] == [None, "train", "val", "test"]


def test_of_flickrs_tables_one_is_read_and_that_is_said(flickr_folder: Path) -> None:
    (flickr_folder / "captions.txt").write_text("image,caption\n1.jpg,other\n", "utf-8")
    with pytest.warns(DiptychWarning, match=r"several files of one kind; results\.csv is read, and not captions\.txt"):
        assert len(open_source(f"flickr30k:{flickr_folder}")) == 4


def test_cocos_files_that_name_the_same_image(tmp_path: Path) -> None:
    coco_folder(tmp_path / "set")
    annotations = tmp_path / "set" / "annotations"
    (tmp_path / "set" / "train2017").rename(tmp_path / "set" / "images")
    (tmp_path / "set" / "val2017" / "d.png").unlink()
    (tmp_path / "set" / "val2017").rmdir()
    train = json.loads((annotations / "captions_train2017.json").read_text("utf-8"))
    val = {"images": train["images"][:2], "annotations": train["annotations"][:2]}
    (annotations / "captions_val2017.json").write_text(json.dumps(val), "utf-8")
    with pytest.warns(DiptychWarning) as said:
        source = open_source(f"coco:{tmp_path / 'set'}")
    assert [source.split(i) for i in range(3)] == ["val", "train", "train"]
    texts = [str(warning.message) for warning in said]
    assert any(
        "captions_val2017.json: 1 of 2 images have no caption and are left out (the first: b.png)" in t for t in texts
    )
    assert any(
        "rows of 1 of 3 images disagree on the split; the last one is used: images/a.png (val)" in t for t in texts
    )


def test_rows_that_disagree_on_a_label(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["a.png"])
    (tmp_path / "rows.csv").write_text("image,caption,label\na.png,x,dog\na.png,y,cat\na.png,z,cat\n", "utf-8")
    with pytest.warns(DiptychWarning, match=r"rows of 1 of 1 images disagree on the label; .*: a\.png \(cat\)"):
        assert open_source(f"csv:{tmp_path}/rows.csv").label(0) == 0
