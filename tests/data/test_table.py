"""Tables of any separator, column names and encoding."""

import pickle
from pathlib import Path

import pytest

from diptych.core.errors import DataError, DiptychWarning
from diptych.data.open_source import open_source
from diptych.images.decode import decode
from tests.conftest import draw_photos
from tests.data.makers import NAMES


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


def test_absolute_paths_are_keyed_from_the_root_if_they_lie_in_it(tmp_path: Path) -> None:
    draw_photos(tmp_path / "set" / "more", ["e.png"])
    draw_photos(tmp_path / "elsewhere", ["f.png"])
    names = ["set/a.png", "set/more/e.png", "elsewhere/f.png"]
    path = _table(tmp_path, "filepath\ttitle\n" + "".join(f"{tmp_path}/{name}\tx\n" for name in names))
    source = open_source(f"csv:{path}")
    assert [source.key(i) for i in range(3)] == names
    assert decode(source[1].image).size == (60, 40)
    source = open_source(f"csv:{path}?root={tmp_path / 'set'}")
    assert [source.key(i) for i in range(3)] == ["a.png", "more/e.png", f"{tmp_path}/elsewhere/f.png"]
    assert decode(source[2].image).size == (60, 40)
    assert source.image_size(2) == (tmp_path / "elsewhere" / "f.png").stat().st_size


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
        (
            "image,caption\nset/a.png,a dog, a cat\n",
            "",
            r"line 2 has 3 fields, the heading 2: .*; a field that holds the separator needs quotes around it",
        ),
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


def test_empty_fields_beyond_the_heading_are_no_error(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["a.png"])
    (tmp_path / "rows.csv").write_text("image,caption\na.png,a dog,, \n", "utf-8")
    assert open_source(f"csv:{tmp_path / 'rows.csv'}").captions(0) == ("a dog",)


def test_a_quoted_field_of_many_lines_is_warned_of(tmp_path: Path) -> None:
    """Two stray quotes make one caption of six rows; a caption of four lines is no reason for a warning."""
    names = [f"{i}.png" for i in range(8)]
    draw_photos(tmp_path, names)
    lines = [f"{name},caption {name}" for name in names]
    lines[1], lines[6] = f'{names[1]},"a dog', f'{names[6]},a cat"'
    (tmp_path / "rows.csv").write_text("image,caption\n" + "\n".join(lines) + "\n", "utf-8")
    with pytest.warns(DiptychWarning, match="lines 3 to 8 are one row, since a quote on line 3 is closed only there"):
        assert len(open_source(f"csv:{tmp_path / 'rows.csv'}")) == 3
    (tmp_path / "rows.csv").write_text('image,caption\n0.png,"one\ntwo\nthree\nfour"\n', "utf-8")
    assert open_source(f"csv:{tmp_path / 'rows.csv'}").captions(0) == ("one\ntwo\nthree\nfour",)
