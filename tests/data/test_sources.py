import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value

from diptych.core.errors import DataError
from diptych.data.open_source import open_source, recognise
from diptych.data.sources.packed import PACK
from diptych.data.sources.protocol import Source
from diptych.data.sources.shapes import CLASSES, NOVEL_CLASSES, ShapesSource
from diptych.data.sources.splits import take_split
from diptych.data.sources.templates import FIVE_TEMPLATES
from diptych.data.tools.pack import pack
from diptych.data.tools.write_shards import write_shards
from diptych.images.decode import decode
from tests.conftest import draw_photos
from tests.data.makers import SOURCE_KINDS, spec_of


@pytest.fixture(params=SOURCE_KINDS)
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return spec_of(request.param, request, tmp_path / "set")


@pytest.fixture
def source(spec: str) -> Source:
    return open_source(spec)


def test_a_path_alone_is_recognised(spec: str) -> None:
    kind, _, path = spec.partition(":")
    if kind not in {"shapes", "shards", "cc3m", "cifar10", "mix"}:
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
        assert sample.label == source.label(i) == again.label(i)
        content = Path(sample.image).read_bytes() if isinstance(sample.image, str | Path) else sample.image
        assert not isinstance(content, bytes) or source.image_size(i) == len(content)
    if source.block_ends is not None:
        assert source.block_ends[-1] == len(source)


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


def test_labels_without_captions_become_captions(json_file: Path) -> None:
    folder = json_file.parent
    rows = [{"image": "a.png", "label": "sea_lion"}, {"image": "b.png", "label": "dog", "caption": "my dog"}]
    source = _read(folder / "labels.json", rows)
    assert (source.captions(0)[0], source.captions(1)) == ("a photo of a sea lion", ("my dog",))
    assert source.templates == FIVE_TEMPLATES
    (folder / "templates.txt").write_text("one {}\n\ntwo {}s\n", "utf-8")
    (folder / "labels.csv").write_text("image,label\na.png,dog\nb.png,\n", "utf-8")
    for name in ("labels.json", "labels.csv"):
        spec = f"{folder / name}?templates={folder / 'templates.txt'}"
        source = open_source(spec)
        if name == "labels.csv":
            assert [source.key(i) for i in range(len(source))] == ["a.png"]
            assert [str(oddity) for oddity in source.oddities] == [
                "images with neither caption nor label: left out (1; b.png)"
            ]
            continue
        assert [source.captions(i) for i in range(2)] == [("one sea lion", "two sea lions"), ("one dog", "two dogs")]
        assert source.templates == ("one {}", "two {}s")


def test_empty_captions_are_left_out_and_a_label_provides_one(json_file: Path) -> None:
    """The same rule for a list with gaps, a null, blanks, and a picture that keeps nothing."""
    rows = [
        {"image": "a.png", "captions": ["", "a cat", " "]},
        {"image": "b.png", "caption": None, "label": "red_circle"},
        {"image": "c.png", "caption": "\t"},
    ]
    draw_photos(json_file.parent, ["c.png"])
    source = _read(json_file.parent / "gaps.json", rows)
    assert [source.key(i) for i in range(len(source))] == ["a.png", "b.png"]
    assert source.captions(0) == ("a cat",)
    assert source.captions(1)[0] == "a photo of a red circle"
    assert [str(oddity) for oddity in source.oddities] == [
        "empty captions: left out (4; a.png, a.png, b.png)",
        "images with neither caption nor label: left out (1; c.png)",
    ]


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
        ([{"image": "a.png", "words": "x"}], "row 0 has none of 'caption', 'captions', 'label'; it has: image, words"),
        ([{}], "row 0 has no key 'image'; it has: none"),
        ([{"image": 3, "caption": "x"}], "row 0: 'image' is a number, not a path"),
        ([{"image": "a.png", "caption": None}], "none of its 1 images has a caption or a label: a.png"),
        ([{"image": "a.png", "captions": []}], "none of its 1 images has a caption or a label: a.png"),
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
    with pytest.raises(
        DataError, match=r"4 of 5 images are not under .*: p\.png, q\.png, r\.png\. Fix .* --skip-missing$"
    ):
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


def test_flickr_says_what_is_wrong(flickr_folder: Path) -> None:
    with pytest.raises(DataError, match=r"neither results.csv, captions.txt nor dataset_"):
        open_source(f"flickr30k:{flickr_folder / 'images'}")
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


# class names


def test_class_names_are_words_in_every_kind_of_source(tmp_path: Path) -> None:
    """Two pictures of `red_circle` and `red circle`, one of `dog`: two classes, in json, csv, tars, packs and hf."""
    labels = ["red_circle", "dog", "red circle"]
    names = [f"{i}.png" for i in range(3)]
    draw_photos(tmp_path, names)
    rows = [{"image": name, "label": label} for name, label in zip(names, labels, strict=True)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{r['image']},{r['label']}\n" for r in rows), "utf-8")
    json_source = open_source(f"json:{tmp_path / 'rows.json'}")
    pack(json_source, tmp_path / "pack")
    write_shards(json_source, tmp_path / "tars")
    contents = [(tmp_path / name).read_bytes() for name in names]
    features = Features({"image": Image(), "label": Value("string")})
    Dataset.from_dict({"image": contents, "label": labels}, features).save_to_disk(tmp_path / "hf")
    for spec in ("json:rows.json", "csv:rows.csv", "packed:pack", "shards:tars/00000.tar", "hf:hf"):
        kind, _, path = spec.partition(":")
        source = open_source(f"{kind}:{tmp_path / path}")
        assert source.classes == ("dog", "red circle"), kind
        assert [source.label(i) for i in range(3)] == [1, 0, 1], kind
        assert source.captions(0)[0] == "a photo of a red circle", kind


def test_a_pack_of_raw_labels_keeps_their_order(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["0.png", "1.png"])
    rows = [{"image": "0.png", "label": "b"}, {"image": "1.png", "label": "a"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    pack(open_source(f"json:{tmp_path / 'rows.json'}"), tmp_path / "pack")
    meta = tmp_path / "pack" / PACK
    meta.write_text(json.dumps(json.loads(meta.read_text("utf-8")) | {"classes": ["z_z", "b_b"]}), "utf-8")
    source = open_source(f"packed:{tmp_path / 'pack'}")
    assert (source.classes, source.label(0), source.label(1)) == (("z z", "b b"), 1, 0)


def test_raw_labels_of_tars_become_words(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["0.png", "1.png"])
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for i, label in enumerate(("red_circle", "red circle")):
            tar.add(tmp_path / f"{i}.png", f"{i}.png")
            (tmp_path / "meta.json").write_text(json.dumps({"label": label}))
            tar.add(tmp_path / "meta.json", f"{i}.json")
    source = open_source(f"shards:{tmp_path / 'set.tar'}")
    assert (source.classes, source.label(0), source.label(1)) == (("red circle",), 0, 0)


def test_a_file_of_a_tool_beside_class_folders_does_not_hide_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        draw_photos(tmp_path / "set" / name, ["0.png", "1.png"])
    (tmp_path / "set" / ".DS_Store").write_bytes(b"x")
    assert open_source(str(tmp_path / "set")).classes == ("cat", "dog")
