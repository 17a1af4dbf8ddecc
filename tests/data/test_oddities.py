"""One mixture of everything that people's data has, and what `data audit` says of it."""

import json
import tarfile
from pathlib import Path
from unicodedata import normalize

import pytest

from diptych.cli.main import main
from tests.conftest import draw_photos

EXPECTED = {
    ("lone folders above the classes", "looked into"): 1,
    ("hidden files and files of other programs", "left out"): 2,
    ("folders whose names differ only in Unicode normalization", "merged"): 1,
    ("links to folders", "followed"): 1,
    ("links that lead back to a folder above them", "left out"): 1,
    ("empty captions", "left out"): 3,
    ("images with neither caption nor label", "left out"): 1,
    ("samples with repeated keys", "kept under keys with a number"): 1,
    ("texts that are not UTF-8", "read as Windows-1252"): 1,
    ("members of other programs", "left out"): 1,
}


def _classes(folder: Path) -> str:
    """A lone folder above the classes; hidden and foreign files; two spellings of one class; a linked class and a loop."""
    top = folder / "archive"
    for name in ("cat", normalize("NFC", "café"), normalize("NFD", "café")):
        draw_photos(top / name, ["0.png", "1.png"])
    draw_photos(folder / "__MACOSX" / "cat", ["._0.png"])
    draw_photos(top / "cat" / ".ipynb_checkpoints", ["0.png"])
    (top / ".DS_Store").write_bytes(b"x")
    draw_photos(folder.parent / "elsewhere", ["0.png"])
    (top / "dog").symlink_to(folder.parent / "elsewhere")
    (top / "cat" / "loop").symlink_to(top)
    return f"class-folder:{folder}"


def _table(folder: Path) -> str:
    """An empty caption beside a good one, an image with a label alone, and one with nothing."""
    draw_photos(folder, ["0.png", "1.png", "2.png"])
    rows = ["0.png,,", "0.png,a dog on the left,", "1.png,,red_circle", "2.png, ,"]
    (folder / "rows.csv").write_text("image,caption,label\n" + "\n".join(rows) + "\n", "utf-8")
    return f"csv:{folder / 'rows.csv'}"


def _tar(folder: Path) -> str:
    """A repeated key, a text in Windows-1252, one with a byte order mark, a file of an archiver."""
    draw_photos(folder, ["0.png"])
    texts = {"0": "eins".encode("utf-8-sig"), "1": "grün".encode("cp1252")}
    with tarfile.open(folder / "set.tar", "w") as tar:
        for key, name in (("0", "0"), ("1", "1"), ("0", "0")):
            tar.add(folder / "0.png", f"./{name}.png")
            (folder / "text").write_bytes(texts[key])
            tar.add(folder / "text", f"./{name}.txt")
        tar.add(folder / "0.png", "__MACOSX/._0.png")
    return f"shards:{folder / 'set.tar'}"


def test_each_oddity_is_listed_with_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = (_classes(tmp_path / "classes"), _table(tmp_path / "table"), _tar(tmp_path / "tar"))
    assert main(["data", "audit", f"mix: {' + '.join(parts)}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    said = {(oddity["what"], oddity["done"]): oddity["num"] for oddity in found["oddities"]}
    assert said == EXPECTED
