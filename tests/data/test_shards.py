"""Tars as a source: random access, what is broken counted, other people's readers."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from diptych.core.errors import ConfigError, DataError, DiptychWarning, ImageError
from diptych.data.open_source import open_source
from diptych.data.sources.tar_pattern import expanded
from diptych.data.storage import tar_index as tar_index_module
from diptych.data.tools.write_shards import write_shards
from diptych.images.decode import decode
from tests.conftest import as_nobody, draw_photos
from tests.data.makers import write_tar


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    draw_photos(tmp_path / "drawn", ["a.jpg"])
    return (tmp_path / "drawn" / "a.jpg").read_bytes()


@pytest.fixture
def shards(tmp_path: Path, flickr_folder: Path) -> Path:
    """Four photos in two tars."""
    write_shards(open_source(f"flickr30k:{flickr_folder}"), tmp_path / "tars", per_shard=3)
    return tmp_path / "tars"


def test_shards_hold_what_the_source_held(shards: Path, flickr_folder: Path) -> None:
    before, after = open_source(f"flickr30k:{flickr_folder}"), open_source(f"shards:{shards}/{{00000..00001}}.tar")
    assert len(after) == len(before) == 4
    for i in range(4):
        assert after.captions(i) == before.captions(i)
        assert after.split(i) == before.split(i)
        assert np.array_equal(np.asarray(decode(after[i].image)), np.asarray(decode(before[i].image)))
    assert [after.key(i) for i in range(4)] == [f"{i // 3:05d}/{i:09d}" for i in range(4)]
    again = pickle.loads(pickle.dumps(after))
    assert [again[i].image for i in (3, 0, 2)] == [after[i].image for i in (3, 0, 2)]


def test_writing_twice_gives_the_same_bytes(shards: Path, flickr_folder: Path, tmp_path: Path) -> None:
    write_shards(open_source(f"flickr30k:{flickr_folder}"), tmp_path / "again", per_shard=3)
    for name in ("00000.tar", "00001.tar"):
        assert (shards / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["00000.tar", "00001.tar"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_reads_them(shards: Path, flickr_folder: Path) -> None:
    import webdataset

    source = open_source(f"flickr30k:{flickr_folder}")
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    rows = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt", "json"))
    assert [text for _, text, _ in rows] == [source.captions(i)[0] for i in range(4)]
    assert [meta["captions"] for _, _, meta in rows] == [list(source.captions(i)) for i in range(4)]
    assert rows[0][0].size == (60, 40)


def test_what_webdataset_writes_is_read(tmp_path: Path, picture: bytes) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"sub/{i:04d}", "jpg": picture, "txt": f"number {i}\n", "json": {"url": "x"}})
    source = open_source(str(tmp_path / "theirs.tar"))
    assert [source.captions(i) for i in range(3)] == [("number 0",), ("number 1",), ("number 2",)]
    assert source.key(2) == "theirs/sub/0002"
    assert decode(source[2].image).size == (60, 40)


def test_labels_of_the_json_become_classes(tmp_path: Path, picture: bytes) -> None:
    rows = [{"caption": "x", "label": label} for label in ("dog", "cat", "dog")]
    files = {f"{i}.{ending}": content for i, row in enumerate(rows) for ending, content in
             (("jpg", picture), ("json", json.dumps(row).encode()))}  # fmt: skip
    source = open_source(f"shards:{write_tar(tmp_path / 'a.tar', *files.items())}")
    assert source.classes == ("cat", "dog")
    assert [source[i].label for i in range(3)] == [1, 0, 1]


def test_the_index_lies_beside_and_is_used(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_source(f"shards:{shards}/*.tar")
    assert sorted(path.name for path in shards.glob("*.npz")) == ["00000.tar.index.npz", "00001.tar.index.npz"]
    monkeypatch.setattr(tar_index_module, "read_samples", None)  # The tars are not read again.
    second = open_source(f"shards:{shards}/*.tar")
    assert [second.captions(i) for i in range(4)] == [first.captions(i) for i in range(4)]
    assert [second[i].image for i in range(4)] == [first[i].image for i in range(4)]


@pytest.mark.parametrize("harm", ["changed", "damaged"])
def test_an_index_that_does_not_fit_is_made_anew(shards: Path, tmp_path: Path, picture: bytes, harm: str) -> None:
    open_source(f"shards:{shards}/*.tar")
    if harm == "changed":
        write_tar(shards / "00001.tar", *{"z.jpg": picture, "z.txt": b"another"}.items())
    else:
        (shards / "00001.tar.index.npz").write_bytes(b"PK\x03\x04broken")
    source = open_source(f"shards:{shards}/*.tar")
    assert source.captions(3) == (
        ("another",) if harm == "changed" else ("Photo 4 , caption 0 .", "Photo 4 , caption 1 .")
    )


def test_the_index_goes_into_the_cache_where_the_folder_is_closed(
    shards: Path, open_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = open_place / "closed"
    shutil.copytree(shards, closed)
    (open_place / "cache").mkdir()
    (open_place / "cache").chmod(0o777)
    closed.chmod(0o555)
    with as_nobody():
        open_source(f"shards:{closed}/*.tar")
        assert not list(closed.glob("*.npz"))
        assert len(list((open_place / "cache").rglob("*.npz"))) == 2
        monkeypatch.setattr(tar_index_module, "read_samples", None)
        assert len(open_source(f"shards:{closed}/*.tar")) == 4


def test_what_is_not_whole_is_left_out_and_counted(tmp_path: Path, picture: bytes) -> None:
    files = {
        "a.jpg": picture, "a.txt": b"one",
        "b.jpg": picture,
        "c.txt": b"three",
        "d.jpg": picture, "d.json": b"{broken",
        "e.jpg": picture, "e.txt": b"  ",
        "f.JPG": picture, "f.txt": b"six",
    }  # fmt: skip
    path = write_tar(tmp_path / "some.tar", *files.items())
    said = r"4 of 6 samples are left out: 2 with no caption, 1 with no image, 1 with JSON that cannot be read"
    for _ in range(2):  # From the index, too.
        with pytest.warns(DiptychWarning, match=said):
            source = open_source(f"shards:{path}")
        assert [source.key(i) for i in range(len(source))] == ["some/a", "some/f"]


@pytest.mark.parametrize(
    ("keep", "num", "reason"), [(2560 * 4, 4, "its end cut off"), (2560 * 4 + 1800, 4, "an image that is cut off")]
)
def test_a_tar_that_is_cut_off_keeps_what_is_whole(
    tmp_path: Path, picture: bytes, keep: int, num: int, reason: str
) -> None:
    """Two headers and two contents of up to 512 and 1,024 bytes a sample: 2,560."""
    files = {f"{i}.{ending}": content for i in range(6) for ending, content in (("txt", b"x"), ("jpg", picture))}
    path = write_tar(tmp_path / "half.tar", *files.items())
    os.truncate(path, keep)
    with pytest.warns(DiptychWarning, match=f"left out: 1 with {reason}"):
        source = open_source(f"shards:{path}")
    assert len(source) == num
    assert all(decode(source[i].image).size == (60, 40) for i in range(num))


def test_a_tar_that_vanishes_or_shrinks_is_an_image_error(shards: Path) -> None:
    """In a process that has not opened it: elsewhere, a deleted tar is read on."""
    source = pickle.loads(pickle.dumps(open_source(f"shards:{shards}/*.tar")))
    (shards / "00001.tar").unlink()
    with pytest.raises(ImageError, match=r"00001\.tar: cannot be read \(No such file"):
        source[3]
    os.truncate(shards / "00000.tar", 100)
    with pytest.raises(ImageError, match="ends before byte"):
        source[0]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{000..002}.tar", r"3 of 3 tars are missing, the first: .*000\.tar"),
        ("*.tar.gz", "matches no tars"),
        ("gone.tar", "1 of 1 tars are missing"),
        ("text.tar", "is not a tar"),
        ("only.tar", r"none of its samples has both an image and a caption; endings seen: jpg \(2\), npy \(2\)"),
    ],
)
def test_shards_say_what_is_wrong(tmp_path: Path, picture: bytes, pattern: str, message: str) -> None:
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    write_tar(tmp_path / "only.tar", *{"0.jpg": picture, "0.npy": b"3", "1.jpg": picture, "1.npy": b"4"}.items())
    with pytest.raises(DataError, match=message):
        open_source(f"shards:{tmp_path}/{pattern}")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..999999999}.tar", r"its ranges name 1,000,000,000 tars or more; at most 1,000,000 are allowed"),
        ("https://host/{0..9999}{0..9999}.tar", r"its ranges name 100,000,000 tars or more"),
        ("{0..1}" * 5000, r"its ranges name 1,048,576 tars or more"),
        ("{" + "0" * 5000 + "..1}.tar", r"a number has 5,000 digits; at most 18 are allowed"),
        ("{9..3}.tar", r"the range \{9\.\.3\} is empty"),
    ],
    ids=["one", "two", "many", "digits", "empty"],
)
def test_ranges_are_counted_before_they_are_expanded(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        open_source(f"shards:{pattern}")
    assert len(str(raised.value)) < 400


def test_tars_of_joined_patterns_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.data.sources.shards.MAX_TARS", 5)
    with pytest.raises(DataError, match="names 6 tars or more; at most 5 are allowed"):
        open_source("shards:https://host/{0..3}.tar::https://host/{0..1}.tar::https://host/{0..4}.tar")


def test_ranges_and_lists_are_expanded_from_left_to_right() -> None:
    assert expanded("{08..10}/a{1..2}.tar") == [f"{a}/a{b}.tar" for a in ("08", "09", "10") for b in (1, 2)]
    assert len(expanded("{0..0}" * 3000)[0]) == 3000
    assert expanded("{train,val}-{0..1}.tar") == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
    assert expanded("{1..2,x}{}{y}.tar") == ["1..2{}{y}.tar", "x{}{y}.tar"]
    assert expanded("a*.tar") == ["a*.tar"]


def test_several_patterns_and_equal_names(tmp_path: Path, picture: bytes) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", *{"k.jpg": picture, "k.txt": folder.encode()}.items())
    source = open_source(f"shards:{tmp_path}/one/0.tar::{tmp_path}/two/*.tar")
    assert [source.key(i) for i in range(2)] == ["one/0/k", "two/0/k"]
    assert [source.captions(i) for i in range(2)] == [("one",), ("two",)]


def test_writing_says_what_it_left_out_and_where_it_may_not(flickr_folder: Path, tmp_path: Path) -> None:
    (flickr_folder / "images" / "2.jpg").write_bytes(b"broken")
    source = open_source(f"flickr30k:{flickr_folder}")
    seen = []
    written = write_shards(source, tmp_path / "tars", on_sample=lambda: seen.append(1))
    assert (written.num_samples, len(written.paths), len(seen)) == (3, 1, 4)
    assert written.skipped[0][0] == "2.jpg"
    with pytest.raises(DataError, match="holds tars already"):
        write_shards(source, tmp_path / "tars")
    with pytest.raises(ConfigError, match="per_shard is 0"):
        write_shards(source, tmp_path / "other", per_shard=0)
    with pytest.raises(DataError, match="cannot be written"):
        write_shards(source, flickr_folder / "images" / "1.jpg" / "tars")
