"""`datasets` sets as a source: folders of save_to_disk, files, what is wrong with them."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from diptych.core.errors import ConfigError, DataError, DiptychWarning, ImageError
from diptych.data.open_source import open_source, recognise
from diptych.data.sources.hugging_face import HuggingFaceSource, as_tables
from diptych.data.sources.protocol import Source
from diptych.data.sources.splits import take_split
from diptych.data.sources.templates import FIVE_TEMPLATES
from diptych.images.decode import decode
from tests.conftest import draw_photos
from tests.data.makers import picture_bytes, saved_labels, saved_splits


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def contents(tmp_path: Path) -> list[bytes]:
    return picture_bytes(tmp_path / "drawn", 4)


def _save(folder: Path, rows: dict[str, list[Any]], features: Features | None = None) -> str:
    Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return f"hf:{folder}"


def test_splits_keys_captions_and_labels(tmp_path: Path) -> None:
    source = open_source(saved_splits(tmp_path / "set"))
    assert [source.key(i) for i in range(6)] == [
        *(f"train/{i:09d}" for i in range(4)),
        *(f"validation/{i:09d}" for i in range(2)),
    ]
    assert [source.split(i) for i in (0, 3, 4, 5)] == ["train", "train", "val", "val"]
    assert source.captions(4) == ("validation 0", "and")
    assert source.classes == ("cat", "dog")
    assert [source.label(i) for i in range(6)] == [0, 1, 0, 1, 0, 1]
    assert source[5].image == (tmp_path / "drawn" / "1.png").read_bytes()
    assert len(take_split(source, "val")) == 2
    assert source.templates == ()


def test_one_split_of_several_keeps_its_keys(tmp_path: Path) -> None:
    spec = saved_splits(tmp_path / "set")
    source = open_source(f"{spec}?split=validation")
    assert [source.key(i) for i in range(len(source))] == ["validation/000000000", "validation/000000001"]
    with pytest.raises(DataError, match=r"has no split 'val'; it has: train \(4\), validation \(2\)"):
        open_source(f"{spec}?split=val")


def test_labels_give_captions_where_there_are_none(tmp_path: Path) -> None:
    spec = saved_labels(tmp_path / "set")
    source = open_source(spec)
    assert source.captions(1)[0] == "a photo of a sea lion"
    assert source.captions(3) == ("no class",)
    assert (source.split(0), source.key(3), source.label(3)) == (None, "000000003", None)
    assert source.templates == FIVE_TEMPLATES
    (tmp_path / "templates.txt").write_text("one {}\n", "utf-8")
    assert open_source(f"{spec}?templates={tmp_path / 'templates.txt'}").captions(0) == ("one dog",)


def test_worker_processes_read_the_same(tmp_path: Path) -> None:
    spec = saved_splits(tmp_path / "set")
    seen = list(DataLoader(_Pixels(open_source(spec)), batch_size=None, num_workers=2))
    assert seen == [_Pixels(open_source(spec))[i] for i in range(6)]


class _Pixels(TorchDataset[bytes]):
    """Pixels by number, for a DataLoader."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> bytes:
        return self.source.key(index).encode() + decode(self.source[index].image).tobytes()


def test_a_pickle_holds_paths_and_no_pictures(tmp_path: Path, contents: list[bytes]) -> None:
    heavy = [content + bytes(10**6) for content in contents]
    source = open_source(_save(tmp_path / "set", {"image": heavy, "caption": list("abcd")}))
    again = pickle.dumps(source)
    assert len(again) < 10**5
    assert pickle.loads(again)[2].image == heavy[2]


def test_several_columns_of_captions(tmp_path: Path, contents: list[bytes]) -> None:
    rows: dict[str, list[Any]] = {
        "image": contents,
        "caption_0": list("abcd"),
        "caption_1": ["x", None, "y", ""],
        "alt": list("efgh"),
    }
    spec = _save(tmp_path / "set", rows)
    source = open_source(spec)
    assert [source.captions(i) for i in range(4)] == [("a", "x"), ("b",), ("c", "y"), ("d",)]
    assert open_source(f"{spec}?caption=alt").captions(1) == ("f",)
    assert open_source(f"{spec}?caption=alt,caption_0").captions(1) == ("f", "b")


def test_a_column_called_split_names_the_splits(tmp_path: Path, contents: list[bytes]) -> None:
    rows: dict[str, list[Any]] = {
        "image": contents,
        "caption": list("abcd"),
        "split": ["train", "validation", "test", None],
    }
    DatasetDict({"test": Dataset.from_dict(rows)}).save_to_disk(tmp_path / "set")
    source = open_source(f"hf:{tmp_path / 'set'}")
    assert [source.split(i) for i in range(4)] == ["train", "val", "test", "test"]


def test_files_of_parquet_with_rows_that_have_no_picture(tmp_path: Path, contents: list[bytes]) -> None:
    """As img2dataset leaves them with `output_format=parquet`: what was not fetched is a null, statistics lie beside."""
    folder = tmp_path / "cc"
    folder.mkdir()
    rows = {
        "caption": list("abcd"),
        "key": list("0123"),
        "jpg": [contents[0], None, contents[2], None],
        "txt": ["a", None, "c", None],
    }
    for number in range(2):
        Dataset.from_dict(rows).to_parquet(folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_text('{"count": 4, "successes": 2}', "utf-8")
    for spec, num in ((f"hf:{folder}?image=jpg&caption=caption", 4), (f"hf:{folder / '00000.parquet'}", 2)):
        with pytest.warns(DiptychWarning, match=rf"{num} of {2 * num} rows have no picture and are left out"):
            source = open_source(spec)
        assert len(source) == num
        assert [source.key(i) for i in range(2)] == ["train/000000000", "train/000000002"]
        assert (source.captions(1), source[1].image) == (("c",), contents[2])
    assert recognise(folder / "00000.parquet") == "hf"


def test_structs_that_no_type_calls_pictures(tmp_path: Path, contents: list[bytes]) -> None:
    rows: dict[str, list[Any]] = {
        "image": [{"bytes": content, "path": "x.png"} for content in contents],
        "caption": list("abcd"),
    }
    spec = _save(tmp_path / "set", rows)
    assert open_source(spec)[1].image == contents[1]


def test_a_folder_of_pictures_by_class(tmp_path: Path) -> None:
    for name in ("train/dog", "train/cat", "validation/dog"):
        draw_photos(tmp_path / "pictures" / name, ["a.png", "b.png"])
    source = open_source(f"hf:{tmp_path / 'pictures'}")
    assert source.classes == ("cat", "dog")
    assert {source.split(i) for i in range(len(source))} == {"train", "val"}
    assert source.captions(0) == tuple(template.format("cat") for template in FIVE_TEMPLATES)
    assert source.image_size(0) == Path(str(source[0].image)).stat().st_size


def test_unlabelled_rows_and_other_columns_of_labels(tmp_path: Path, contents: list[bytes]) -> None:
    features = Features({"image": Image(), "coarse": ClassLabel(names=["a", "b"]), "caption": Value("string")})
    rows: dict[str, list[Any]] = {
        "image": [{"bytes": c, "path": None} for c in contents],
        "coarse": [0, 1, -1, None],
        "caption": list("wxyz"),
    }
    spec = _save(tmp_path / "set", rows, features)
    assert open_source(spec).classes == ()
    source = open_source(f"{spec}?label=coarse")
    assert [source.label(i) for i in range(4)] == [0, 1, None, None]
    del rows["caption"], features["caption"]
    alone = open_source(_save(tmp_path / "alone", rows, features))
    assert [alone.label(i) for i in range(len(alone))] == [0, 1]
    assert [str(oddity) for oddity in alone.oddities] == [
        "images with neither caption nor label: left out (2; row 2, row 3)"
    ]


# What is wrong


def test_wrong_columns_are_named_with_those_there_are(tmp_path: Path, contents: list[bytes]) -> None:
    spec = _save(tmp_path / "set", {"blob": contents, "words": list("abcd"), "n": [1, 2, 3, 4]})
    listed = r"it has: blob \(binary\), words \(text\), n \(int64\)\. Name it: hf:.*/set\?"
    for options, message in {
        "": rf"has no column of pictures; {listed}image=COLUMN",
        "?image=blob": rf"has no column of captions, nor one of labels; {listed}caption=COLUMN",
        "?image=gone": rf"has no column 'gone'; {listed}image=COLUMN",
        "?image=words": r"column 'words' holds text, which is no image; for a table with paths there is csv:FILE",
        "?image=blob&caption=n": r"column 'n' holds int64, which is no caption",
        "?image=blob&label=n": r"column 'n' holds int64, which is no label",
        "?picture=blob": "unknown option 'picture'",
        "?config=en": "option 'config' is for folders of files and for sets of the hub",
    }.items():
        with pytest.raises(DataError, match=message):
            open_source(spec + options)
    assert open_source(f"{spec}?image=blob&caption=words").captions(0) == ("a",)
    assert open_source(f"{spec}?image=blob&label=words").classes == ("a", "b", "c", "d")


def test_two_columns_of_pictures_must_be_told_apart(tmp_path: Path, contents: list[bytes]) -> None:
    features = Features({"left": Image(), "right": Image(), "caption": Value("string")})
    spec = _save(tmp_path / "set", {"left": contents, "right": contents[::-1], "caption": list("abcd")}, features)
    with pytest.raises(DataError, match=r"has several columns of pictures \(left, right\)"):
        open_source(spec)
    assert open_source(f"{spec}?image=right")[0].image == contents[3]


def test_rows_without_caption_and_label_are_counted(tmp_path: Path, contents: list[bytes]) -> None:
    spec = _save(tmp_path / "set", {"image": contents, "captions": [["a"], [], [None, " "], None]})
    source = open_source(spec)
    assert [source.captions(i) for i in range(len(source))] == [("a",)]
    assert [str(oddity) for oddity in source.oddities] == [
        "images with neither caption nor label: left out (3; row 1, row 2, row 3)",
        "empty captions: left out (3; row 2, row 3)",
    ]
    with pytest.raises(DataError, match="none of its 2 rows has a caption or a label"):
        open_source(_save(tmp_path / "blank", {"image": contents[:2], "caption": ["", " "]}))
    nothing = _save(
        tmp_path / "none",
        {"image": [None, None], "caption": ["a", "b"]},
        Features({"image": Image(), "caption": Value("string")}),
    )
    with pytest.raises(DataError, match="none of its 2 rows has a picture"):
        open_source(nothing)


def test_what_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("a dog\n", "utf-8")
    (tmp_path / "words" / "a.xyz").write_text("a dog\n", "utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}", "utf-8")
    for name, message in {
        "empty": "contains no dataset: no folder of save_to_disk, no parquet files, no pictures",
        "gone": "no such file or folder, and not the name of a dataset on the hub",
        "words": r"has no column of pictures; it has: text \(text\)",
        "words/a.xyz": r"is not a file that hf: reads; supported suffixes are \.parquet",
        "broken": "cannot be opened",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            open_source(f"hf:{tmp_path / name}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Couldn't reach 'a/b' on the Hub"),
            r"the hub cannot be reached .*load_dataset\('a/b'\)\.save_to_disk",
        ),
        (datasets.exceptions.DatasetNotFoundError("x"), "neither a folder nor a dataset on the hub"),
        (
            ValueError("Config name is missing.\nPick one of ['en', 'de']"),
            r"missing\. Pick one of .* a config is named by hf:a/b\?config=NAME",
        ),
    ],
)
def test_the_hub_in_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=message) as caught:
        open_source("hf:a/b")
    assert "\n" not in str(caught.value)


def test_the_hub_gets_the_name_and_the_config(monkeypatch: pytest.MonkeyPatch, contents: list[bytes]) -> None:
    asked: list[object] = []

    def load(*names: object) -> Dataset:
        asked.extend(names)
        return Dataset.from_dict({"image": contents, "text": list("abcd")}, split=datasets.NamedSplit("train"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert open_source("hf:owner/name?config=en").key(1) == "train/000000001"
    assert asked == ["owner/name", "en"]


def test_streamed_sets_are_refused() -> None:
    streamed = Dataset.from_dict({"text": ["a"]}).to_iterable_dataset()
    with pytest.raises(DataError, match="is IterableDataset, not a Dataset; streamed sets have no random access"):
        as_tables(streamed, where="hf:x")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"hf: needs an extra: pip install 'diptych\[datasets\]'"):
        open_source("hf:owner/name")


def test_what_arrow_raises_is_an_unreadable_picture(tmp_path: Path) -> None:
    source = open_source(saved_labels(tmp_path / "set"))
    assert isinstance(source, HuggingFaceSource)
    source._pictures[0] = ()
    with pytest.raises(ImageError, match=r"000000001: cannot be read from its table \(tuple index out of range\)"):
        source[1]
