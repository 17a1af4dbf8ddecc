"""Texts, lists and numbers as they are written on the command line: a text is no path, and every number is finite."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.cli.main import main
from diptych.inference.loaded import LoadedBundle
from tests.cli.makers import error_of

pytestmark = pytest.mark.usefixtures("here")

LONG = "a photo of a red circle next to a blue square " * 8


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A file of texts."""
    path = tmp_path / "texts.txt"
    path.write_text("a red circle\na blue square\na green triangle\n", "utf-8")
    return str(path)


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str]:
    """What is printed as JSON, and what standard error gets."""
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_a_text_longer_than_a_file_name_is_a_text(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photos: Path, tmp_path: Path, texts: str
) -> None:
    bundle, index = str(tiny_bundle), str(tmp_path / "index")
    assert main(["index", "add", index, str(photos), "--bundle", bundle]) == 0
    capsys.readouterr()
    assert len(_json(capsys, "search", index, LONG)[0]) == 6
    assert len(_json(capsys, "search", index, f"{LONG} - {LONG[7:]}", "--minus", LONG[9:])[0]) == 6
    assert len(_json(capsys, "rank-images", bundle, str(photos), LONG)[0]["results"]) == 5
    assert len(_json(capsys, "rank-texts", bundle, LONG, "--texts", texts)[0]["results"]) == 3
    for words in (
        ["search", LONG, "red"],
        ["index", "add", index, LONG],
        ["similarity", bundle, LONG, "red"],
        ["classify", bundle, LONG, "--classes", "red", "blue"],
        ["rank-images", bundle, LONG, "red"],
        ["rank-texts", bundle, f"{LONG}.jpg", "--texts", texts],
        ["evaluate", "zero-shot", bundle, "--data", "shapes:9", "--template", LONG],
        ["train", LONG],
    ):
        error_of(capsys, *words)


def test_rank_texts_takes_a_text(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photos: Path, clip: LoadedBundle, texts: str
) -> None:
    expected = clip.encode_texts(["a red circle", "a blue square", "a green triangle"])
    for words, query in (
        ('"a text"', clip.encode_texts(["a text"])[0]),
        ("a text", clip.encode_texts(["a text"])[0]),
        ('"a.png"', clip.encode_texts(["a.png"])[0]),
        (str(photos / "a.png"), clip.encode_images([photos / "a.png"])[0]),
        (f"2*{photos / 'a.png'}", clip.encode_images([photos / "a.png"])[0]),
    ):
        found, err = _json(capsys, "rank-texts", str(tiny_bundle), words, "--texts", texts)
        assert err == ""
        scores = {result["position"]: result["score"] for result in found["results"]}
        np.testing.assert_allclose([scores[position] for position in range(3)], expected @ query, atol=1e-5)
    (photos / "b - c.png").write_bytes((photos / "a.png").read_bytes())
    drawn = photos.parent / "drawn.png"
    ranking = ["rank-texts", str(tiny_bundle), str(photos / "b - c.png"), "--texts", texts, "--sheet", str(drawn)]
    assert _json(capsys, *ranking)[0]["query"] == str(photos / "b - c.png")
    assert drawn.stat().st_size > 1000
    assert "needs a single image" in error_of(capsys, *ranking[:2], '"a text"', *ranking[3:])


def test_classes_may_be_in_a_file(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photos: Path, texts: str
) -> None:
    classify = ["classify", str(tiny_bundle), str(photos / "a.png"), "--classes"]
    names = {"a red circle", "a blue square", "a green triangle"}
    (answer,), err = _json(capsys, *classify, texts)
    assert ({score["name"] for score in answer["scores"]}, err) == (names, "")
    (answer,), err = _json(capsys, *classify, texts, "x, y")
    assert {score["name"] for score in answer["scores"]} == {*names, "x, y"}
    assert "'x, y' is one class" in err
    Path("names").write_text("\ufeffred\n\n blue \n", "utf-8")
    assert {score["name"] for score in _json(capsys, *classify, "names")[0][0]["scores"]} == {"red", "blue"}
    (answer,), _ = _json(capsys, *classify, "names", "blue")  # One of several words that is no .txt is a word.
    assert {score["name"] for score in answer["scores"]} == {"names", "blue"}
    assert "holds no classes" in error_of(capsys, *classify, str(_written("empty.txt", "\n")))
    shot = ["evaluate", "zero-shot", str(tiny_bundle), "--data", "shapes:9", "--classes", texts]
    assert "3 class names given, but the data has 18" in error_of(capsys, *shot)


def _written(name: str, text: str) -> Path:
    Path(name).write_text(text, "utf-8")
    return Path(name)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (["dog,cat"], 'diptych: --classes: \'dog,cat\' is one class; for several, write --classes "dog" "cat"\n'),
        (["dog,", "cat"], "diptych: --classes: 'dog,' is one class; for several, write --classes \"dog\"\n"),
        (["gone.txt"], "diptych: --classes: 'gone.txt' is the only class, so every picture gets it with 100 %; "),
        (["dog", "cat"], ""),
        (["dog", "--threshold", "0.2"], ""),  # It or none of these.
    ],
)
def test_classes_that_were_probably_meant_otherwise(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photos: Path, classes: list[str], says: str
) -> None:
    (answer,), err = _json(capsys, "classify", str(tiny_bundle), str(photos / "a.png"), "--classes", *classes)
    assert len(answer["scores"]) == len([name for name in classes if name not in {"--threshold", "0.2"}])
    assert err.startswith(says)
    assert bool(err) == bool(says)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "NaN"])
@pytest.mark.parametrize(
    "line",
    [
        "classify BUNDLE a.png --classes a b --threshold=",
        "index duplicates BUNDLE --threshold=",
        "serve BUNDLE --deadline=",
        "serve BUNDLE --window-ms=",
        "evaluate knn BUNDLE --data shapes:9 --temperature=",
        "evaluate retrieval BUNDLE --data shapes:9 --val-fraction=",
        "data audit shapes:9 --split-by run --val-fraction=",
        "train demo --minutes=",
        "train demo --lr=",
        "train demo --optimizer.eps=",
        "tune demo --epochs=",
        "demo --epochs=",
        "search BUNDLE red --where=size<",
    ],
)
def test_every_number_of_a_command_is_finite(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, line: str, number: str
) -> None:
    words = line.replace("BUNDLE", str(tiny_bundle)).split()
    error_of(capsys, *words[:-1], f"{words[-1]}{number}")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "classify BUNDLE a.png --classes a b --threshold 1.5",
            "--threshold is '1.5'; it must be a cosine within [-1, 1], or auto",
        ),
        (
            "classify BUNDLE a.png --classes a b --threshold nan",
            "--threshold is 'nan'; it must be a cosine within [-1, 1], or auto",
        ),
        ("index duplicates BUNDLE --threshold nan", "--threshold. it must be a finite number"),
        ("evaluate knn BUNDLE --data shapes:90 --temperature 0", "temperature is 0.0; it must be above 0"),
        ("data audit shapes:9 --split-by run --val-fraction 1", "val_fraction is 1.0; it must lie within (0, 1)"),
        ("search BUNDLE 1e50*red", "the weight of 'red' is 1e+50; it must lie within [-100, 100]"),
        ("search BUNDLE 1e999*red", "the weight of 'red' is inf; it must lie within [-100, 100]"),
        ("rank-images BUNDLE . 101*red", "the weight of 'red' is 101; it must lie within [-100, 100]"),
    ],
)
def test_numbers_out_of_range(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, line: str, says: str) -> None:
    assert says in error_of(capsys, *line.replace("BUNDLE", str(tiny_bundle)).split())
