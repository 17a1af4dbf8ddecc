"""What people have in tars: repeated keys, links, encodings, numbered captions, labels, and the files of CLIP_benchmark."""

import gzip
from pathlib import Path

import pytest

from diptych.core.errors import DataError
from diptych.data.open_source import open_source
from diptych.data.sources.protocol import Source
from tests.data.makers import picture_bytes, write_tar


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    return picture_bytes(tmp_path / "drawn", 3)


def _seen(source: Source) -> list[tuple[str, tuple[str, ...], object]]:
    return [(source.key(i), source.captions(i), source[i].image) for i in range(len(source))]


def test_equally_named_tars_of_deep_folders_have_different_keys(tmp_path: Path, pictures: list[bytes]) -> None:
    for folder in "ab":
        write_tar(tmp_path / folder / "x" / "0.tar", ("k.jpg", pictures[0]), ("k.txt", folder.encode()))
    source = open_source(f"shards:{tmp_path}/*/x/0.tar")
    assert [source.key(i) for i in range(2)] == ["a/x/0/k", "b/x/0/k"]


def test_every_sample_of_a_repeated_key_is_kept(tmp_path: Path, pictures: list[bytes]) -> None:
    a, b, c = pictures
    rows = ("0.jpg", a), ("0.txt", b"one"), ("0.jpg", b), ("0.txt", b"two"), ("1.jpg", c), ("1.txt", b"three")
    path = write_tar(tmp_path / "t.tar", *rows, ("0.jpg", c), ("0.txt", b"four"))
    for _ in range(2):  # From the index, too.
        source = open_source(str(path))
        assert _seen(source) == [
            ("t/0", ("one",), a), ("t/0#2", ("two",), b), ("t/1", ("three",), c), ("t/0#3", ("four",), c),
        ]  # fmt: skip
        assert [str(oddity) for oddity in source.oddities] == [
            "samples with repeated keys: kept under keys with a number (2; t/0#2, t/0#3)"
        ]


def test_members_that_stand_apart_are_one_sample(tmp_path: Path, pictures: list[bytes]) -> None:
    a, b, _ = pictures
    source = open_source(
        str(write_tar(tmp_path / "t.tar", ("0.jpg", a), ("1.jpg", b), ("0.txt", b"one"), ("1.txt", b"two")))
    )
    assert _seen(source) == [("t/0", ("one",), a), ("t/1", ("two",), b)]
    assert (source.oddities[0].what, source.oddities[0].num) == ("members separated from their sample", 1)


def test_names_with_and_without_a_dot_are_one_and_foreign_ones_left_out(tmp_path: Path, pictures: list[bytes]) -> None:
    a, b, _ = pictures
    rows = ("./0.jpg", a), ("0.txt", b"one"), ("0.jpg", b), ("__MACOSX/._0.jpg", a), ("._0.txt", b"x")
    source = open_source(str(write_tar(tmp_path / "t.tar", *rows)))
    assert _seen(source) == [("t/0", ("one",), b)]
    assert [str(oddity) for oddity in source.oddities] == [
        "members named with and without ./: taken as one (1; t/0.jpg)",
        "members of other programs: left out (2; t/__MACOSX/._0.jpg, t/._0.txt)",
    ]


@pytest.mark.parametrize(
    ("encoding", "read_as"), [("utf-8-sig", None), ("utf-16", "UTF-16"), ("latin-1", "Windows-1252")]
)
def test_texts_of_any_encoding(tmp_path: Path, pictures: list[bytes], encoding: str, read_as: str | None) -> None:
    source = open_source(str(write_tar(tmp_path / "t.tar", ("0.jpg", pictures[0]), ("0.txt", "grün".encode(encoding)))))
    assert source.captions(0) == ("grün",)
    said = [f"texts that are not UTF-8: read as {read_as} (1; t/0.txt)"] if read_as else []
    assert [str(oddity) for oddity in source.oddities] == said


def test_a_hard_link_is_the_picture_it_leads_to(tmp_path: Path, pictures: list[bytes]) -> None:
    rows = ("0.jpg", pictures[0]), ("0.txt", b"one"), ("1.jpg", "0.jpg"), ("1.txt", b"two"), ("1.png", "gone.png")
    source = open_source(str(write_tar(tmp_path / "t.tar", *rows)))
    assert _seen(source) == [("t/0", ("one",), pictures[0]), ("t/1", ("two",), pictures[0])]
    assert str(source.oddities[0]) == "links whose target is not an earlier member: left out (1; t/1.png)"


def test_numbered_texts_are_captions_in_the_order_of_their_numbers(tmp_path: Path, pictures: list[bytes]) -> None:
    texts = [(f"0.{number}.txt", f"caption {number}".encode()) for number in (10, 0, 2)]
    source = open_source(str(write_tar(tmp_path / "t.tar", ("0.jpg", pictures[0]), *texts)))
    assert source.captions(0) == ("caption 0", "caption 2", "caption 10")


def test_a_compressed_tar_says_what_unpacks_it(tmp_path: Path, pictures: list[bytes]) -> None:
    path = tmp_path / "folder" / "t.tar.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(write_tar(tmp_path / "t.tar", ("0.jpg", pictures[0])).read_bytes()))
    for spec in (f"shards:{path}", str(path)):
        with pytest.raises(DataError, match=rf"is compressed, .*: gunzip {path}"):
            open_source(spec)
    with pytest.raises(DataError, match=r"t\.tar\.gz is compressed: unpack such files first"):
        open_source(str(path.parent))


def test_clip_benchmarks_classes_and_templates_lie_above_the_tars(tmp_path: Path, pictures: list[bytes]) -> None:
    rows = [(f"s{i}.{ending}", content) for i, (picture, label) in enumerate(zip(pictures, b"202", strict=True))
            for ending, content in (("webp", picture), ("cls", bytes([label])))]  # fmt: skip
    write_tar(tmp_path / "set" / "test" / "0.tar", *rows)
    with pytest.raises(DataError, match="labels are numbers without names"):
        open_source(f"shards:{tmp_path}/set")
    (tmp_path / "set" / "classnames.txt").write_text("crane\ndog\ncrane\n", "utf-8")
    (tmp_path / "set" / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}.\n", "utf-8")
    source = open_source(f"shards:{tmp_path}/set")
    assert source.classes == ("crane", "dog", "crane")
    assert [(source.label(i), source.split(i)) for i in range(3)] == [(2, "test"), (0, "test"), (2, "test")]
    assert source.captions(0) == ("a crane.", "the crane.")
    (tmp_path / "set" / "classnames.txt").write_text("crane\ndog\n", "utf-8")
    with pytest.raises(DataError, match="a label is 2, but the file of class names holds 2"):
        open_source(f"shards:{tmp_path}/set")


def test_lines_are_captions_in_clip_benchmarks_sets_for_retrieval(tmp_path: Path, pictures: list[bytes]) -> None:
    path = write_tar(tmp_path / "0.tar", ("s0.webp", pictures[0]), ("s0.txt", b"one\ntwo"))
    assert open_source(str(path)).captions(0) == ("one\ntwo",)
    assert open_source(f"{path}?captions=lines").captions(0) == ("one", "two")
    (tmp_path / "dataset_type.txt").write_text("retrieval\n", "utf-8")
    assert open_source(str(path)).captions(0) == ("one", "two")


def test_labels_of_the_json_may_be_numbers(tmp_path: Path, pictures: list[bytes]) -> None:
    rows = [(f"{i}.{ending}", content) for i, picture in enumerate(pictures) for ending, content in
            (("jpg", picture), ("json", b'{"caption": "x", "label": %d}' % (10 - i)))]  # fmt: skip
    source = open_source(str(write_tar(tmp_path / "t.tar", *rows)))
    assert source.classes == ("8", "9", "10")
    assert [source.label(i) for i in range(3)] == [2, 1, 0]
