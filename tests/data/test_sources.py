import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diptych.core.errors import DataError
from diptych.data.sources.choice import open_source, recognise
from diptych.data.sources.cifar import CIFAR10
from diptych.data.sources.protocol import Source
from diptych.data.sources.shapes import CLASSES, NOVEL_CLASSES, ShapesSource
from diptych.data.sources.subset import take_split
from diptych.data.write_shards import write_shards
from diptych.images.decode import decode
from tests.conftest import draw_photos
from tests.data.test_cifar import python_files

NAMES = [f"{name}.png" for name in "abcd"]


def _csv(folder: Path) -> str:
    draw_photos(folder, NAMES)
    rows = [f"{folder.name}/{name}\tcaption {name}\tdog" for name in NAMES]
    (folder.parent / "set.tsv").write_text("filepath\ttitle\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
    return f"csv:{folder.parent / 'set.tsv'}"


def _tsv_folder(folder: Path) -> str:
    draw_photos(folder / "images", NAMES)
    (folder / "captions.txt").write_text("".join(f"{name}\tcaption {name}\r\n" for name in NAMES), "utf-8", newline="")
    return f"tsv-folder:{folder}"


def _flickr8k(folder: Path) -> str:
    draw_photos(folder / "Images", NAMES)
    rows = [f'{name},"one, of {name}"\n{name},two of {name}\n' for name in NAMES]
    (folder / "captions.txt").write_text("image,caption\n" + "".join(rows), "utf-8")
    return f"flickr8k:{folder}"


def _coco(folder: Path) -> str:
    for year, names in (("train2017", NAMES[:3]), ("val2017", NAMES[3:])):
        draw_photos(folder / year, names)
        (folder / "annotations").mkdir(exist_ok=True)
        content = {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [{"image_id": i, "caption": f"one {i} "} for i in range(len(names)) for _ in range(2)],
        }
        (folder / "annotations" / f"captions_{year}.json").write_text(json.dumps(content), "utf-8")
    return f"coco:{folder}"


def _class_folder(folder: Path) -> str:
    for part in ("train/sea_lion", "train/dog", "val/dog"):
        draw_photos(folder / part, NAMES[:2])
    return f"class-folder:{folder}"


def _class_zip(folder: Path) -> str:
    draw_photos(folder / "dog", NAMES)
    with zipfile.ZipFile(folder.parent / "set.zip", "w") as file:
        for name in NAMES:
            file.write(folder / "dog" / name, f"dog/{name}")
    return f"class-folder:{folder.parent / 'set.zip'}"


def _cifar10(folder: Path) -> str:
    return f"cifar10:{python_files(CIFAR10, folder)}"


def _shards(folder: Path) -> str:
    write_shards(open_source(_csv(folder)), folder / "tars", per_shard=3)
    return f"shards:{folder}/tars/*.tar"


MAKERS: dict[str, Callable[[Path], str]] = {
    "csv": _csv,
    "tsv-folder": _tsv_folder,
    "flickr8k": _flickr8k,
    "coco": _coco,
    "class-folder": _class_folder,
    "class-folder in a zip": _class_zip,
    "shards": _shards,
    "cifar10": _cifar10,
}


@pytest.fixture(params=["shapes", "json", "flickr30k", *MAKERS])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "shapes":
            return "shapes:10"
        case "json":
            return f"json:{request.getfixturevalue('json_file')}"
        case "flickr30k":
            return f"flickr30k:{request.getfixturevalue('flickr_folder')}"
        case name:
            return MAKERS[name](tmp_path / "set")


@pytest.fixture
def source(spec: str) -> Source:
    return open_source(spec)


def test_a_path_alone_is_recognised(spec: str) -> None:
    kind, _, path = spec.partition(":")
    if kind not in {"shapes", "shards", "cifar10"}:
        assert recognise(Path(path)) == kind
        alone, named = open_source(path), open_source(spec)
        assert [alone.key(i) for i in range(len(alone))] == [named.key(i) for i in range(len(named))]


def test_no_sample_lies_beyond_the_end(source: Source) -> None:
    with pytest.raises(IndexError):
        source[len(source)]


def test_every_source_keeps_the_contract(source: Source) -> None:
    again = pickle.loads(pickle.dumps(source))
    keys = [source.key(i) for i in range(len(source))]
    assert len(set(keys)) == len(keys) >= 4
    for i in range(4):
        sample = source[i]
        assert (sample.key, sample.captions) == (source.key(i), source.captions(i))
        assert sample.captions
        assert all(caption == caption.strip() for caption in sample.captions)
        assert sample.label is None or source.classes[sample.label]
        assert np.array_equal(np.asarray(decode(again[i].image)), np.asarray(decode(sample.image)))
        assert (again.key(i), again.split(i)) == (source.key(i), source.split(i))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shape:9", r"unknown source kind 'shape'; did you mean 'shapes'\?"),
        ("json", "has no location: write json:PATH"),
        ("shapes:many", "number of training pictures"),
        ("shapes:0", "number of training pictures"),
        ("flickr30k:/nowhere", "/nowhere: no such folder"),
        ("json:/nowhere.json", "/nowhere.json: no such file"),
        ("json:/", "is a folder"),
        ("", "unknown source kind ''"),
    ],
)
def test_a_source_that_is_not_there(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(spec)


# json


def _read(path: Path, content: object) -> Source:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return open_source(f"json:{path}")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": "a.png"}, "holds an object, not a list of rows"),
        ("text", "is not JSON"),
        ([], "holds no rows"),
        ([{"image": "a.png", "caption": "x"}, 7], "row 1 is a number, not an object"),
        (
            [{"image": "a.png", "caption": "x"}, {"caption": "x", "id": 1}],
            "row 1 has no key 'image'; it has: caption, id",
        ),
        ([{"image": "a.png", "text": "x"}], "row 0 has neither 'caption' nor 'captions'; it has: image, text"),
        ([{}], "row 0 has no key 'image'; it has: none"),
        ([{"image": 3, "caption": "x"}], "row 0: 'image' is a number, not a path"),
        ([{"image": "a.png", "caption": None}], "row 0: its captions are not texts"),
        ([{"image": "a.png", "captions": []}], "row 0: its captions are not texts"),
        ([{"image": "a.png", "captions": ["x", 3]}], "row 0: its captions are not texts"),
        ([{"image": "a.png", "caption": "x", "label": 3}], "row 0: 'label' is a number, not a text"),
        ([{"image": "a.png", "caption": "x", "split": None}], "row 0: 'split' is null, not a text"),
    ],
)
def test_json_names_what_is_wrong_and_where(json_file: Path, rows: object, message: str) -> None:
    path = json_file.with_name("bad.json")
    with pytest.raises(DataError, match=message) as caught:
        _read(path, rows)
    assert str(path) in str(caught.value)


def test_json_counts_missing_images_and_names_three(json_file: Path) -> None:
    rows = [{"image": f"{name}.png", "caption": "x"} for name in ("a", "p", "q", "r", "s")]
    with pytest.raises(DataError, match=r"4 of 5 images are not under .*: p\.png, q\.png, r\.png$"):
        _read(json_file.with_name("bad.json"), rows)


def test_json_reads_a_byte_order_mark_and_lines(json_file: Path) -> None:
    rows = json.loads(json_file.read_text("utf-8"))
    marked = _read(json_file.with_name("bom.json"), "\ufeff" + json.dumps(rows))
    lines = _read(json_file.with_name("rows.jsonl"), "\n".join(json.dumps(row) for row in rows) + "\n\n")
    for source in (marked, lines):
        assert [source.key(i) for i in range(4)] == ["a.png", "b.png", "c.png", "d.png"]
        assert source.classes == ("cat", "dog")
        assert [source[i].label for i in range(4)] == [1, 0, 1, 0]


def test_jsonl_keeps_captions_with_line_separators(json_file: Path) -> None:
    """JSON allows U+2028 and U+0085 inside a string; they do not end a line of JSONL."""
    line = json.dumps({"image": "a.png", "caption": "one\u2028two\u0085three"}, ensure_ascii=False)
    assert _read(json_file.with_name("rows.jsonl"), line).captions(0) == ("one\u2028two\u0085three",)


def test_json_merges_rows_of_one_image(json_file: Path) -> None:
    rows = [{"image": n, "caption": c} for n, c in (("a.png", "one"), ("b.png", "two"), ("a.png", "three"))]
    source = _read(json_file.with_name("repeat.json"), rows)
    assert [source.captions(i) for i in range(len(source))] == [("one", "three"), ("two",)]


def test_json_merging_keeps_the_label_that_one_row_gives(json_file: Path) -> None:
    rows = [{"image": "a.png", "caption": "one", "label": "dog", "split": "val"}, {"image": "a.png", "caption": "two"}]
    source = _read(json_file.with_name("repeat.json"), rows)
    assert (source[0].label, source.split(0)) == (0, "val")


# Flickr


def test_flickr_reads_the_table_with_its_broken_row_and_the_splits(flickr_folder: Path) -> None:
    source = open_source(f"flickr30k:{flickr_folder}")
    assert [source.key(i) for i in range(4)] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert source.captions(0) == ("Photo 1 , caption 0 .", "Photo 1 , caption 1 .")
    assert source.captions(1) == ("Photo 2 , caption 0 .", "A dog runs across the grass .")
    assert [source.split(i) for i in range(4)] == ["train", "train", "val", "test"]
    assert decode(source[0].image).size == (60, 40)


def test_flickr_from_the_splits_alone(flickr_folder: Path) -> None:
    (flickr_folder / "results.csv").unlink()
    assert open_source(f"flickr8k:{flickr_folder}").captions(2) == ("photo one",)


def test_flickr_from_the_table_alone_leaves_splits_to_the_hash(flickr_folder: Path) -> None:
    (flickr_folder / "dataset_flickr30k.json").unlink()
    assert open_source(f"flickr30k:{flickr_folder}").split(0) is None


def test_flickr_says_what_is_wrong(flickr_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither results.csv, captions.txt nor dataset_"):
        open_source(f"flickr30k:{tmp_path}")
    table = flickr_folder / "results.csv"
    table.write_text(table.read_text("utf-8") + "9.jpg| 0| gone\n", "utf-8")
    with pytest.raises(DataError, match=r"1 of 5 images are not under .*: 9\.jpg"):
        open_source(f"flickr30k:{flickr_folder}")
    table.write_text("image_name| comment_number| comment\nno row at all\n", "utf-8")
    with pytest.raises(DataError, match=r"line 2 is not 'image\| number\| caption': 'no row at all'"):
        open_source(f"flickr30k:{flickr_folder}")
    table.write_text("image_name| comment_number| comment\n", "utf-8")
    with pytest.raises(DataError, match="holds no captions"):
        open_source(f"flickr30k:{flickr_folder}")
    (flickr_folder / "dataset_flickr30k.json").write_text('{"images": [{"filename": "1.jpg"}]}')
    with pytest.raises(DataError, match="is not Karpathy's split file"):
        open_source(f"flickr30k:{flickr_folder}")


# Tables


def _table(tmp_path: Path, content: str | bytes, name: str = "set.csv") -> Path:
    draw_photos(tmp_path / "set", NAMES)
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("image,caption\nset/a.png,one\nset/b.png,two\n", ""),
        ("\ufeffimage,caption\r\nset/a.png,one\r\nset/b.png,two\r\n", ""),
        ("Filepath\tTitle\nset/a.png\tone\nset/b.png\ttwo", ""),
        ("id;text;file\n1;one;set/a.png\n\n2;two;set/b.png\n", ""),
        ('where|what\nset/a.png|"one"\nset/b.png|two\n', "?image=where&caption=what"),
        ("a,what\nb,image,caption\n", None),
        ("image:caption\nset/a.png:one\nset/b.png:two\n", "?separator=:"),
        ("image,caption\na.png,one\nb.png,two\n", "?root={}/set"),
    ],
)
def test_csv_of_any_separator_and_column_names(tmp_path: Path, content: str, options: str | None) -> None:
    path = _table(tmp_path, content)
    if options is None:
        with pytest.raises(DataError, match=r"has no column 'image'; it has: a, what\. Name it: csv:FILE"):
            open_source(f"csv:{path}")
        return
    source = open_source(f"csv:{path}{options.format(tmp_path)}")
    assert [source.captions(i) for i in range(len(source))] == [("one",), ("two",)]
    assert decode(source[1].image).size == (60, 40)


def test_csv_fields_may_hold_separators_quotes_and_line_ends(tmp_path: Path) -> None:
    content = 'image,caption,label,split\nset/a.png,"a ""red"" dog,\nrunning",dog,val\nset/a.png,two,,\n'
    source = open_source(f"csv:{_table(tmp_path, content)}")
    assert source.captions(0) == ('a "red" dog,\nrunning', "two")
    assert (source.classes, source[0].label, source.split(0)) == (("dog",), 0, "val")


def test_csv_of_absolute_paths_has_keys_that_do_not_depend_on_the_machine(tmp_path: Path) -> None:
    draw_photos(tmp_path / "set" / "more", ["e.png"])
    names = ["set/a.png", "set/more/e.png"]
    path = _table(tmp_path, "filepath\ttitle\n" + "".join(f"{tmp_path}/{name}\tx\n" for name in names))
    source = open_source(f"csv:{path}")
    assert [source.key(i) for i in range(2)] == ["a.png", "more/e.png"]
    assert decode(source[1].image).size == (60, 40)


def test_csv_of_an_older_encoding_says_how_to_read_it(tmp_path: Path) -> None:
    path = _table(tmp_path, "image,caption\nset/a.png,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"is not utf-8 text .*say so: csv:FILE\?encoding=latin-1"):
        open_source(f"csv:{path}")
    assert open_source(f"csv:{path}?encoding=latin-1").captions(0) == ("café",)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", "", "has no heading"),
        ("\n\n", "", "has no heading"),
        ("image,caption\n", "", "holds no rows"),
        ("image,caption\nset/a.png\n", "", "line 2 has 1 fields, the heading 2"),
        ("image,caption\nset/gone.png,x\n", "", "1 of 1 images are not under .*: set/gone.png"),
        ("image,caption\nset/a.png,x\n", "?captoin=x", "unknown option 'captoin'; did you mean 'caption'"),
        ("image,caption\nset/a.png,x\n", "?caption=words", "has no column 'words'; it has: image, caption"),
        ("image,caption\nset/a.png,x\n", "?separator=ab", "separator is 'ab'"),
        ("image,caption\nset/a.png,x\n", "?encoding=klingon", "unknown encoding"),
        ("image,caption\nset/a.png,x\n", "?caption=", "option 'caption' has no value"),
    ],
)
def test_csv_says_what_is_wrong(tmp_path: Path, content: str, options: str, message: str) -> None:
    path = _table(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(f"csv:{path}{options}")
    assert str(path) in str(caught.value)


def test_a_million_rows_are_not_a_million_objects(tmp_path: Path) -> None:
    """50,000 here: the texts' own bytes, and a few numbers a row."""
    rows = "".join(f"set/{'abcd'[i % 4]}.png,caption number {i} of this table\n" for i in range(50_000))
    path = _table(tmp_path, "image,caption\n" + rows)
    source = open_source(f"csv:{path}")
    assert len(source) == 4
    assert sum(len(source.captions(i)) for i in range(4)) == 50_000
    assert source.captions(1)[:2] == ("caption number 1 of this table", "caption number 5 of this table")
    assert len(pickle.dumps(source)) < 2 * len(rows)


# COCO and folders of classes


def test_coco_takes_splits_from_the_files_names(tmp_path: Path) -> None:
    source = open_source(_coco(tmp_path / "set"))
    assert [source.split(i) for i in range(4)] == ["train", "train", "train", "val"]
    assert source.key(3) == "val2017/d.png"
    assert source.captions(0) == ("one 0", "one 0")
    one = open_source(f"coco:{tmp_path}/set/annotations/captions_val2017.json")
    assert (len(one), one.split(0)) == (1, "val")


def test_coco_says_what_is_wrong(tmp_path: Path) -> None:
    spec = _coco(tmp_path / "set")
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
    source = open_source(_class_folder(tmp_path / "set"))
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
    with pytest.raises(DataError, match=r"lone\.png lies in no class's folder"):
        open_source(f"class-folder:{tmp_path}/set")
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        open_source(f"class-folder:{tmp_path}/bad.zip")
    (tmp_path / "templates.txt").write_text("a dog\n")
    with pytest.raises(DataError, match=r"template 'a dog' has no \{\}"):
        open_source(f"class-folder:{tmp_path}/set?templates={tmp_path}/templates.txt")


def test_what_looks_like_nothing_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looks like no kind of data; say which: KIND:"):
        open_source(str(tmp_path))
    (tmp_path / "results.csv").write_text("x")
    (tmp_path / "captions_x.json").write_text("x")
    with pytest.raises(DataError, match="looks like flickr30k and coco; say which"):
        open_source(str(tmp_path))


# Shapes


def test_shapes_are_a_pure_function_of_their_number() -> None:
    small, large = ShapesSource(num_train=20), ShapesSource(num_train=4000)
    for a, b in ((small[7], large[7]), (small[25], large[4005])):
        assert (a.key, a.captions, a.label) == (b.key, b.captions, b.label)
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    other = ShapesSource(num_train=20, seed=1)
    assert not np.array_equal(np.asarray(small[7].image), np.asarray(other[7].image))


def test_shapes_captions_match_their_label_and_colour() -> None:
    source = ShapesSource(num_train=90)
    for i in range(90):
        sample = source[i]
        assert sample.label is not None
        assert all(CLASSES[sample.label] in caption for caption in sample.captions)
        article = "an" if CLASSES[sample.label].startswith("orange") else "a"
        assert sample.captions[0] == f"{article} {CLASSES[sample.label]}"
        assert all(" a orange" not in f" {caption}" for caption in sample.captions)
        assert len(sample.captions) in {2, 3}
        colour = CLASSES[sample.label].split()[0]
        assert not sample.captions[-1].endswith(f"{colour} background")


def test_novel_pairs_are_in_no_other_split() -> None:
    source = open_source("shapes:400")
    seen = {}
    for name in ("train", "val", "novel"):
        part = take_split(source, name)
        seen[name] = {part.captions(i)[0].split(maxsplit=1)[1] for i in range(len(part))}
    assert seen["novel"] == set(NOVEL_CLASSES)
    assert seen["train"] == seen["val"] == set(CLASSES) - set(NOVEL_CLASSES)


def test_shapes_end_where_their_length_says() -> None:
    source = ShapesSource(num_train=3)
    assert source.key(2) == "train-000002"
    assert source.key(3) == "val-000000"
    with pytest.raises(IndexError):
        source[len(source)]
