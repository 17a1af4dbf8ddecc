"""The fingerprint of data: what changes it, what does not, and that columns and rows give the same one."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.core.digests import FileDigests
from diptych.core.fingerprint import PARTS, DataFingerprint
from diptych.data.open_source import open_source
from diptych.data.sources import protocol
from diptych.data.sources.identity import columns_by_row, fingerprint_data
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import Subset
from tests.conftest import draw_photos
from tests.data.makers import MAKERS

NAMES = [f"{name}.png" for name in "abcdef"]


@pytest.mark.parametrize("kind", MAKERS)
def test_columns_and_rows_give_the_same_fingerprint(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_source(MAKERS[kind](tmp_path / "set"))
    for source in (whole, Subset(whole, range(1, len(whole))), Subset(whole, list(range(0, len(whole), 2)))):
        found = fingerprint_data(source)
        with monkeypatch.context() as patch:
            patch.setattr(type(source), "columns", lambda *_: None)
            assert fingerprint_data(source) == found
            patch.setattr(protocol, "_CHUNK", 2)
            assert fingerprint_data(source) == found
        monkeypatch.setattr(protocol, "_CHUNK", 1 << 16)


@pytest.mark.parametrize("kind", ["csv", "coco", "shards", "packed", "cc3m", "hf", "class-folder"])
def test_sources_with_columns_have_them(kind: str, tmp_path: Path) -> None:
    source = open_source(MAKERS[kind](tmp_path / "set"))
    rows = np.array([2, 0])
    columns, expected = source.columns(rows), columns_by_row(source, rows)
    assert columns is not None
    for ours, theirs in ((columns.keys, expected.keys), (columns.captions, expected.captions)):
        assert ours.content.tobytes() == theirs.content.tobytes()
        assert ours.lengths.tolist() == theirs.lengths.tolist()


@pytest.mark.parametrize("location", ["set.json", "set.json?templates=templates.txt"])
def test_captions_from_templates_are_columns(tmp_path: Path, location: str) -> None:
    """Of rows with a label and a caption, with one of both, and with several captions."""
    (tmp_path / "templates.txt").write_text("a {}\nmy {}, ö\n", "utf-8")

    def change(rows: list[dict[str, object]]) -> None:
        rows[0]["captions"], rows[1]["captions"], rows[3]["label"] = [], [""], "sea_lion"
        del rows[4]["label"]

    _write(tmp_path / "set", rows=change)
    where = location.replace("templates.txt", str(tmp_path / "templates.txt"))
    source = open_source(f"json:{tmp_path / 'set' / where}")
    rows = np.array([0, 1, 2, 3, 4, 5, 0])
    columns, expected = source.columns(rows), columns_by_row(source, rows)
    assert source.templates
    assert columns is not None
    assert columns.captions.texts() == expected.captions.texts()
    assert columns.num_captions.tolist() == expected.num_captions.tolist()
    assert columns.labels.tolist() == expected.labels.tolist()


def _write(folder: Path, *, rows: Callable[[list[dict[str, object]]], None] = lambda _: None) -> Source:
    """Six pictures with two captions, a label and a split each."""
    if not folder.exists():
        draw_photos(folder, NAMES)
    content: list[dict[str, object]] = [
        {"image": name, "captions": [f"one {name}", "two"], "label": (name < "c" and "dog") or "cat", "split": "train"}
        for name in NAMES
    ]
    rows(content)
    (folder / "set.json").write_text(json.dumps(content), "utf-8")
    return open_source(f"json:{folder / 'set.json'}")


def _set(number: int, **values: object) -> Callable[[list[dict[str, object]]], None]:
    return lambda rows: rows[number].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set(1, captions=["one b.png", "three"]), "captions differ; keys, labels, splits and pictures are the same"),
        (_set(1, captions=["one b.pngtwo"]), "captions differ; keys, labels, splits and pictures are the same"),
        (_set(1, captions=["one b.pngt", "wo"]), "captions differ; keys, labels, splits and pictures are the same"),
        (_set(1, label="cat"), "labels differ; keys, captions, splits and pictures are the same"),
        (_set(1, split="val"), "splits differ; keys, captions, labels and pictures are the same"),
        (
            lambda rows: rows.pop(),
            "it has 5 samples instead of 6; keys, captions, labels, splits and pictures differ",
        ),
        (
            lambda rows: rows.insert(0, rows.pop(1)),
            "keys, captions and pictures differ; labels and splits are the same",
        ),
    ],
)
def test_each_change_is_named(tmp_path: Path, change: Callable[[list[dict[str, object]]], None], said: str) -> None:
    before = fingerprint_data(_write(tmp_path / "set"))
    assert fingerprint_data(_write(tmp_path / "set")).changes_since(before) is None
    after = fingerprint_data(_write(tmp_path / "set", rows=change))
    assert after.changes_since(before) == said
    assert after.digest != before.digest


def test_captions_that_move_to_the_next_row_are_noticed(tmp_path: Path) -> None:
    def shift(rows: list[dict[str, object]]) -> None:
        rows[0]["captions"], rows[1]["captions"] = ["one a.png"], ["two", "one b.png", "two"]

    before, after = fingerprint_data(_write(tmp_path / "set")), fingerprint_data(_write(tmp_path / "set", rows=shift))
    assert after.changes_since(before) == "captions differ; keys, labels, splits and pictures are the same"


def test_a_copy_has_the_same_fingerprint_and_times_do_not_count(tmp_path: Path) -> None:
    source = _write(tmp_path / "set")
    shutil.copytree(tmp_path / "set", tmp_path / "elsewhere" / "copy")
    os.utime(tmp_path / "elsewhere" / "copy" / "a.png", (1, 1))
    copy = open_source(f"json:{tmp_path / 'elsewhere' / 'copy' / 'set.json'}")
    assert fingerprint_data(copy) == fingerprint_data(source)
    assert fingerprint_data(copy, pictures="contents") == fingerprint_data(source, pictures="contents")


def test_a_replaced_picture_is_noticed_by_its_size_and_one_of_equal_size_by_its_content(tmp_path: Path) -> None:
    source = _write(tmp_path / "set")
    sizes, contents = fingerprint_data(source), fingerprint_data(source, pictures="contents")
    picture = tmp_path / "set" / "b.png"
    picture.write_bytes(picture.read_bytes()[:-1] + b"\x01")
    assert fingerprint_data(source) == sizes
    changed = fingerprint_data(source, pictures="contents").changes_since(contents)
    assert changed == "pictures differ; keys, captions, labels and splits are the same"
    Image.new("RGB", (300, 200)).save(picture)
    assert fingerprint_data(source).changes_since(sizes) == changed


def test_pictures_are_compared_only_if_both_were_read_the_same_way(tmp_path: Path) -> None:
    source = _write(tmp_path / "set")
    assert fingerprint_data(source, pictures="contents").changes_since(fingerprint_data(source)) is None


def test_contents_are_the_same_from_files_and_from_tars(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    tars = open_source(MAKERS["shards"](tmp_path / "set"))
    files = open_source(f"csv:{tmp_path / 'set.tsv'}")
    found = [fingerprint_data(source, pictures="contents").pictures for source in (tars, files)]
    assert found[0] == found[1]


def test_a_picture_that_is_gone_counts_as_one_that_cannot_be_read(tmp_path: Path) -> None:
    source = _write(tmp_path / "set")
    sizes, contents = fingerprint_data(source), fingerprint_data(source, pictures="contents")
    (tmp_path / "set" / "c.png").unlink()
    for before, after in (
        (sizes, fingerprint_data(source)),
        (contents, fingerprint_data(source, pictures="contents")),
    ):
        assert (after.changes_since(before) or "").startswith("pictures differ; ")


def test_shares_of_a_mixture_count(tmp_path: Path) -> None:
    _write(tmp_path / "one")
    _write(tmp_path / "two")
    one, two = (f"json:{tmp_path / name / 'set.json'}" for name in ("one", "two"))
    before = fingerprint_data(open_source(f"mix: 1*{one} + 1*{two}"))
    changed = fingerprint_data(open_source(f"mix: 2*{one} + 1*{two}")).changes_since(before)
    assert changed == "mixture differs; keys, captions, labels, splits and pictures are the same"


def test_a_fingerprint_survives_json(tmp_path: Path) -> None:
    found = fingerprint_data(_write(tmp_path / "set"))
    assert DataFingerprint.from_plain(json.loads(json.dumps(found.to_plain()))) == found
    assert len({getattr(found, part) for part in PARTS}) == len(PARTS)


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diptych" / "digests.sqlite"


def _digest(path: Path) -> bytes:
    digests = FileDigests()
    try:
        return digests.digest(path)
    finally:
        digests.close()


def test_a_checksum_is_computed_once_for_each_size_and_time(
    tmp_path: Path, digests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**9, 10**9))
    first = _digest(path)
    with monkeypatch.context() as patch:
        patch.setattr("diptych.core.digests.sha256_of", lambda _: pytest.fail("it was read again"))
        assert _digest(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(2 * 10**9, 2 * 10**9))
    assert (first, _digest(path)) == (sha256(b"one").digest(), sha256(b"two").digest())
    assert digests.is_file()


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, digests: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    state = path.stat()
    assert _digest(path) == sha256(b"one").digest()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert _digest(path) == sha256(b"two").digest()


def test_a_damaged_database_costs_nothing_but_time(tmp_path: Path, digests: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    expected = _digest(path)
    digests.write_bytes(b"no database" * 1000)
    assert _digest(path) == expected
