"""Conceptual Captions in img2dataset's layout, its failures and its unfinished shards."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import webdataset
from pyarrow import parquet

from diptych.core.errors import DataError, DiptychWarning
from diptych.data.open_source import open_source
from diptych.data.sources.splits import take_split
from diptych.images.decode import decode
from tests.data.makers import picture_bytes

SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("caption", "url", "key", "status", "error_message")]
    + [(name, pyarrow.int32()) for name in ("width", "height", "original_width", "original_height")]
    + [("exif", pyarrow.string()), ("sha256", pyarrow.string())]
)


def write_img2dataset(
    folder: Path, shard: int, contents: list[bytes | None], *, kind: str = "webdataset", finished: bool = True
) -> Path:
    """A shard as img2dataset's writers leave it; None for a URL that did not answer."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{shard:05d}"
    rows = [_row(shard, number, content) for number, content in enumerate(contents)]
    schema = SCHEMA.append(pyarrow.field("jpg", pyarrow.binary())).append(pyarrow.field("txt", pyarrow.string()))
    table = [{**row, "jpg": content, "txt": row["caption"]} for row, content in zip(rows, contents, strict=True)]
    if kind == "webdataset":
        with webdataset.TarWriter(str(folder / f"{name}.tar")) as writer:
            for row, content in zip(rows, contents, strict=True):
                if content is not None:
                    meta = json.dumps(row, indent=4)
                    writer.write({"__key__": row["key"], "jpg": content, "txt": row["caption"], "json": meta})
    elif kind == "files":
        (folder / name).mkdir()
        for row, content in zip(rows, contents, strict=True):
            if content is not None:
                beside = folder / name / row["key"]
                beside.with_suffix(".jpg").write_bytes(content)
                beside.with_suffix(".txt").write_text(row["caption"], "utf-8")
                beside.with_suffix(".json").write_text(json.dumps(row, indent=4), "utf-8")
    parquet.write_table(
        pyarrow.Table.from_pylist(table, schema if kind == "parquet" else SCHEMA), folder / f"{name}.parquet"
    )
    if finished:
        failed = sum(content is None for content in contents)
        stats = {
            "count": len(contents), "successes": len(contents) - failed, "failed_to_download": failed,
            "failed_to_resize": 0, "duration": 1.5, "start_time": 1.0, "end_time": 2.5,
            "status_dict": {"success": len(contents) - failed, "HTTP Error 404: Not Found": failed},
        }  # fmt: skip
        (folder / f"{name}_stats.json").write_text(json.dumps(stats, indent=4), "utf-8")
    return folder


def _row(shard: int, number: int, content: bytes | None) -> dict[str, Any]:
    size = dict.fromkeys(("width", "height", "original_width", "original_height"), 60 if content else None)
    return {
        "caption": f"caption {number} of shard {shard} ", "url": f"http://example.com/{number}.jpg",
        "key": f"{shard:05d}{number:04d}", "status": "success" if content else "failed_to_download",
        "error_message": None if content else "HTTP Error 404: Not Found", **size,
        "exif": "{}" if content else None, "sha256": "0" * 64 if content else None,
    }  # fmt: skip


@pytest.fixture
def contents(tmp_path: Path) -> list[bytes | None]:
    return [*picture_bytes(tmp_path / "drawn", 4)]


def test_tars_with_failures_are_counted_once(tmp_path: Path, contents: list[bytes | None]) -> None:
    write_img2dataset(tmp_path / "cc", 0, contents)
    write_img2dataset(tmp_path / "cc", 1, [None, contents[1], None])
    (tmp_path / "cc" / "cc3m.tsv").write_text("caption\turl\n", "utf-8")
    with pytest.warns(DiptychWarning) as caught:
        source = open_source(f"cc3m:{tmp_path / 'cc'}")
    said = "5 of 7 URLs were fetched (2 failed to download, 0 to be resized)"
    assert [str(warning.message) for warning in caught] == [f"cc3m:{tmp_path / 'cc'}: {said}"]
    assert [source.key(i) for i in (0, 4)] == ["00000/000000000", "00001/000010001"]
    assert source.captions(4) == ("caption 1 of shard 1",)
    assert {source.split(i) for i in range(5)} == {None}


@pytest.mark.parametrize("layout", ["folders", "names"])
def test_splits_from_folders_and_from_names(tmp_path: Path, contents: list[bytes | None], layout: str) -> None:
    root = tmp_path / "cc"
    for split, num in (("train", 4), ("validation", 2)):
        write_img2dataset(root / split, 0, contents[:num])
        if layout == "names":
            (root / split / "00000.tar").rename(root / f"cc3m-{split}-0000.tar")
    source = open_source(f"cc3m:{root}")
    again = pickle.loads(pickle.dumps(source))
    for each in (source, again):
        assert [each.split(i) for i in range(6)] == ["train"] * 4 + ["val"] * 2
    assert len(take_split(source, "val")) == 2
    assert len({source.key(i) for i in range(6)}) == 6
    with pytest.raises(IndexError):
        source.split(6)


@pytest.mark.parametrize("beside", ["txt", "json"])
def test_the_files_format(tmp_path: Path, contents: list[bytes | None], beside: str) -> None:
    root = tmp_path / "cc"
    write_img2dataset(root / "train", 0, [*contents[:3], None], kind="files")
    write_img2dataset(root / "val", 0, contents[:2], kind="files")
    if beside == "json":
        for path in root.rglob("*.txt"):
            path.unlink()
    with pytest.warns(DiptychWarning, match=r"5 of 6 URLs were fetched"):
        source = open_source(f"cc3m:{root}")
    assert [source.key(i) for i in (0, 3)] == ["train/00000/000000000.jpg", "val/00000/000000000.jpg"]
    assert [source.split(i) for i in (0, 3)] == ["train", "val"]
    assert source.captions(1) == ("caption 1 of shard 0",)
    assert decode(source[3].image).size == (60, 40)
    for path in (root / "train").rglob("*000000001.*"):
        if path.suffix != ".jpg":
            path.write_text(" ", "utf-8")
    with pytest.warns(
        DiptychWarning, match=r"5 of 6 URLs were fetched .*; 1 of 5 samples are left out: 1 with no caption"
    ):
        assert len(open_source(f"cc3m:{root}")) == 4


def test_unfinished_shards_give_what_they_have(tmp_path: Path, contents: list[bytes | None]) -> None:
    root = write_img2dataset(tmp_path / "cc", 0, contents)
    write_img2dataset(root, 1, contents, finished=False)
    os.truncate(root / "00001.tar", 10240)
    (root / "00002.tar").touch()
    (root / "00001_stats.json").write_text('{"count": 4,', "utf-8")
    said = r"2 of 3 shards are unfinished, without _stats\.json \(00001\.tar, 00002\.tar\)"
    with pytest.warns(DiptychWarning, match=said):
        source = open_source(f"cc3m:{root}")
    assert 4 < len(source) < 8
    assert all(decode(source[i].image) for i in range(len(source)))
    (root / "00000.tar").unlink()
    (root / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"1 tars hold no samples; 1 of 1 shards are unfinished"):
        open_source(f"cc3m:{root}")


def test_pictures_in_parquet_are_read_through_hf(
    tmp_path: Path, contents: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = write_img2dataset(tmp_path / "cc", 0, [contents[0], None, contents[2]], kind="parquet")
    spec = f"hf:{root}?image=jpg&caption=caption"
    with pytest.raises(DataError, match=r"holds parquet files, and neither tars nor folders") as caught:
        open_source(f"cc3m:{root}")
    assert str(caught.value).endswith(f"read them as {spec}")
    with pytest.warns(DiptychWarning, match="1 of 3 rows have no picture and are left out"):
        source = open_source(spec)
    assert [source.captions(i) for i in range(2)] == [("caption 0 of shard 0",), ("caption 2 of shard 0",)]
    assert source[1].image == contents[2]


def test_a_table_without_pictures_says_how_to_fetch_them(tmp_path: Path) -> None:
    table = tmp_path / "Train_GCC-training.tsv"
    table.write_text("a very typical bus station\thttp://example.com/bus.jpg\n", "utf-8")
    command = f"img2dataset --url_list {table} --input_format tsv --url_col url --caption_col caption"
    for spec in (f"cc3m:{table}", f"cc3m:{tmp_path}"):
        with pytest.raises(DataError) as caught:
            open_source(spec)
        assert rf"sed -i '1s/^/caption\turl\n/' {table} && {command}" in str(caught.value)
        assert "\n" not in str(caught.value)
    table.write_text("caption\turl\na bus\thttp://example.com/bus.jpg\n", "utf-8")
    with pytest.raises(DataError, match=rf"use cc3m:OUT: {command}"):
        open_source(f"cc3m:{table}")


def test_what_is_no_such_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    for name, message in {
        "": "contains neither tars nor numbered folders of pictures",
        "gone": "no such folder",
        "a.zip": "is a file; cc3m: needs a folder",
    }.items():
        with pytest.raises(DataError, match=message):
            open_source(f"cc3m:{tmp_path / name}")
