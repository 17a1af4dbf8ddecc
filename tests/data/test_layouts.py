"""Layouts of other tools that are read as they are: kohya's, Hugging Face's image folder, Flickr's and Karpathy's own files."""

import json
from pathlib import Path

import pytest

from diptych.core.errors import DataError
from diptych.data.open_source import open_source, recognise
from diptych.data.sources.protocol import Source
from tests.conftest import draw_photos


def _seen(source: Source) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(source.key(i), source.captions(i), source.split(i)) for i in range(len(source))]


def test_a_text_next_to_each_picture_is_its_caption(tmp_path: Path) -> None:
    draw_photos(tmp_path / "10_dog", ["a.JPG", "b.png", "c.png"])
    (tmp_path / "10_dog" / "a.txt").write_bytes(b"\xef\xbb\xbfone\n")
    (tmp_path / "10_dog" / "b.caption").write_bytes("grün".encode("latin-1"))
    source = open_source(str(tmp_path))
    assert _seen(source) == [("10_dog/a.JPG", ("one",), None), ("10_dog/b.png", ("grün",), None)]
    assert [str(oddity) for oddity in source.oddities] == [
        "texts that are not UTF-8: read as Windows-1252 (1; 10_dog/b.png)",
        "pictures without a caption: left out (1; 10_dog/c.png)",
    ]


def test_pictures_alone_say_what_is_missing(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["a.jpg"])
    for spec in (str(tmp_path), f"text-folder:{tmp_path}"):
        with pytest.raises(DataError, match=r"without captions or classes; put a \.txt .* diptych index add INDEX"):
            open_source(spec)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_hugging_faces_image_folder(tmp_path: Path, name: str) -> None:
    for split in ("train", "validation"):
        draw_photos(tmp_path / split, ["a.jpg"])
        rows = {"metadata.jsonl": json.dumps({"file_name": "a.jpg", "text": split}) + "\n"}
        (tmp_path / split / name).write_text(rows.get(name, f"file_name,text\na.jpg,{split}\n"), "utf-8")
    expected = [("train/a.jpg", ("train",), "train"), ("validation/a.jpg", ("validation",), "validation")]
    assert _seen(open_source(str(tmp_path))) == expected
    assert _seen(open_source(str(tmp_path / "train"))) == [("a.jpg", ("train",), None)]
    assert _seen(open_source(str(tmp_path / "train" / name))) == [("a.jpg", ("train",), None)]


def test_flickr8ks_own_files(tmp_path: Path) -> None:
    draw_photos(tmp_path / "Flicker8k_Dataset", ["a.jpg", "b.jpg"])
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    (text / "Flickr8k.token.txt").write_text(
        "a.jpg#0\tone .\na.jpg#1\ttwo .\nb.jpg#0\tthree .\nb.jpg.1#0\tx\n", "utf-8"
    )
    (text / "Flickr8k.lemma.token.txt").write_text("a.jpg#0\tlemma\n", "utf-8")
    (text / "Flickr_8k.trainImages.txt").write_text("a.jpg\n", "utf-8")
    (text / "Flickr_8k.devImages.txt").write_text("b.jpg\n", "utf-8")
    source = open_source(str(tmp_path))
    assert _seen(source) == [("a.jpg", ("one .", "two ."), "train"), ("b.jpg", ("three .",), "dev")]
    assert str(source.oddities[0]) == "captions without a valid image name: left out (1; b.jpg.1)"


def test_karpathys_coco_has_folders(tmp_path: Path) -> None:
    draw_photos(tmp_path / "val2014", ["a.jpg"])
    image = {"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "one"}, {"raw": "two"}]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [image]}), "utf-8")
    assert _seen(open_source(str(tmp_path))) == [("val2014/a.jpg", ("one", "two"), "test")]


def test_kaggles_table_with_the_comments_number(tmp_path: Path) -> None:
    draw_photos(tmp_path / "Images", ["a.jpg"])
    (tmp_path / "captions.txt").write_text('image,comment_number,comment\na.jpg,0,"one, two"\n', "utf-8")
    assert recognise(tmp_path) == "flickr8k"
    assert _seen(open_source(str(tmp_path))) == [("a.jpg", ("one, two",), None)]


@pytest.mark.parametrize("cell", ['["one", "it\'s two"]', """['one', "it's two"]"""])
def test_a_cell_may_hold_a_list_of_captions(tmp_path: Path, cell: str) -> None:
    draw_photos(tmp_path, ["a.jpg", "b.jpg"])
    path = tmp_path / "rows.CSV"
    path.write_text(f"image\tcaptions\na.jpg\t{cell}\nb.jpg\t[sic] a dog [here]\n".replace("\t", "|").replace('"', '""')
                    .replace("|" + cell.replace('"', '""'), '|"' + cell.replace('"', '""') + '"'), "utf-8")  # fmt: skip
    assert [source[1] for source in _seen(open_source(str(path)))] == [("one", "it's two"), ("[sic] a dog [here]",)]
