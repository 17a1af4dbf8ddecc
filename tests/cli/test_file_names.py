"""Names of files that look like options, after `--`; and names that are not UTF-8, in plots."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from diptych.cli.main import main

NAMES = ("--help.jpg", "--set.x=1.jpg", "-h.jpg", "--version")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (40, 30), (60 * number, 80, 200)).save(tmp_path / name, "JPEG")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "words",
    [
        "similarity {bundle} --json -- {name} text",
        "classify {bundle} --json --classes dog cat -- {name}",
        "explain {bundle} --out heat.png -- {name} text",
        "rank-texts {bundle} --json --texts texts.txt -- {name}",
    ],
)
def test_a_picture_may_be_named_like_an_option(
    words: str, name: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("a dog\na cat\n", "utf-8")
    assert main([word.format(bundle=tiny_bundle, name=name) for word in words.split()]) == 0
    told = capsys.readouterr().out
    assert (tmp_path / "heat.png").is_file() if "explain" in words else name in json.dumps(json.loads(told))


@pytest.mark.parametrize("name", ["--help.d", "--a.b=c"])
def test_folders_and_data_may_be_named_like_options(
    name: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    for label in ("red", "blue"):
        (folder / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 30 + number), label).save(folder / label / f"{number}.png")
    bundle = str(tiny_bundle)
    assert main(["index", "add", "index", "--bundle", bundle, "--", name]) == 0
    assert main(["search", "index", "--json", "--", f"{name}/red/0.png"]) == 0
    assert main(["index", "remove", "index", "--", name]) == 0
    assert main(["rank-images", "--json", "--", bundle, name, "red"]) == 0
    assert main(["data", "audit", "--json", "--", f"class-folder:{name}"]) == 0
    assert main(["data", "audit", "--json", "--", name]) == 0
    assert name in capsys.readouterr().out


def test_a_plot_of_names_that_are_not_utf_8(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"\xff\xfe $x_{$.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    words = ["similarity", str(tiny_bundle), "--plot", "matrix.png", "--", name, "$ 狗 \U0001f415"]
    assert main(words) == 0
    with Image.open(tmp_path / "matrix.png") as drawn:
        assert drawn.size[0] > 300
    assert main([*words[:3], os.fsdecode(b"\xff.png"), *words[4:]]) == 0
    assert r"Plot: \udcff.png" in capsys.readouterr().out
