"""How many samples of a run may be missing or unreadable."""

import re
from pathlib import Path

import pytest

from diptych.cli.main import main
from diptych.core.errors import DataError, DiptychWarning
from diptych.data.open_source import open_source
from diptych.data.sources.listing import missing_images
from diptych.device.distributed import ALONE
from diptych.training.config import TrainConfig, read_config, write_config
from diptych.training.report.skipped import SkippedSamples
from tests.conftest import draw_photos


@pytest.mark.parametrize(
    ("num_samples", "share", "allowed"), [(50, 0.01, 3), (400, 0.01, 4), (1000, 0.01, 10), (50, 0.2, 10), (50, 0.0, 0)]
)
def test_three_samples_or_the_share_are_allowed(tmp_path: Path, num_samples: int, share: float, allowed: int) -> None:
    samples = SkippedSamples(tmp_path / "skipped.jsonl", ALONE, num_samples=num_samples, max_share=share)
    samples.add([(str(i), "is not a picture") for i in range(allowed)], num_tried=num_samples)
    with pytest.raises(DataError, match=r"samples cannot be read.*allow more: --data.max-skipped") as caught:
        samples.add([("one more", "is not a picture")], num_tried=num_samples)
    named = re.search(r"--data.max-skipped ([0-9.]+)", str(caught.value))
    assert named is not None
    again = SkippedSamples(tmp_path / "again.jsonl", ALONE, num_samples=num_samples, max_share=float(named[1]))
    again.add([(str(i), "is not a picture") for i in range(allowed + 1)], num_tried=num_samples)


def _table(folder: Path, num: int) -> str:
    draw_photos(folder, [f"{i:03d}.png" for i in range(num)])
    rows = "".join(f"{i:03d}.png,picture {i} {which},{i % 2},\n" for i in range(num) for which in "ab")
    (folder / "rows.csv").write_text(f"image,caption,label,split\n{rows}", "utf-8")
    return f"csv:{folder / 'rows.csv'}"


def test_one_broken_picture_of_fifty_is_skipped(
    tiny_run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _table(tmp_path / "set", 50)
    (tmp_path / "set" / "010.png").write_bytes(b"no picture")
    write_config(tiny_run, tmp_path / "c.yaml")
    words = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--data",
        data,
        "--data.train-split",
        "all",
        "--data.val-split",
        "all",
    ]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert "010.png" in (tmp_path / "run" / "skipped.jsonl").read_text("utf-8")


@pytest.mark.filterwarnings("always:.* images are not under")
@pytest.mark.parametrize("recipe", ["--config", "small-data"])
def test_the_way_out_of_a_missing_picture_is_named_and_works(
    tiny_run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    data = _table(tmp_path / "set", 50)
    (tmp_path / "set" / "010.png").unlink()
    write_config(tiny_run, tmp_path / "c.yaml")
    words = [recipe, str(tmp_path / "c.yaml")] if recipe == "--config" else [recipe, "--data.workers", "0"]
    line = ["train", *words, "--data", data, "--steps", "2", "--out", str(tmp_path / "run")]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "1 of 50 images are not under" in said
    assert "010.png" in said
    assert "--skip-missing" in said
    assert main([*line, "--skip-missing"]) == 0
    assert "1 of 50 images are not under" in capsys.readouterr().err
    assert read_config(tmp_path / "run" / "config.yaml").data.skip_missing


def test_rows_of_missing_images_are_left_out(tmp_path: Path) -> None:
    draw_photos(tmp_path, ["a.png", "c.png", "d.png"])
    (tmp_path / "t.csv").write_text(
        "image,caption,label,split\na.png,one,x,\nb.png,two,y,train\nc.png,three,,val\na.png,four,,\nd.png,five,z,train\n"
    )
    with (
        missing_images(skip=True),
        pytest.warns(DiptychWarning, match=r"1 of 4 images are not under .* left out: b\.png"),
    ):
        source = open_source(f"csv:{tmp_path / 't.csv'}")
    assert [source.key(i) for i in range(3)] == ["a.png", "c.png", "d.png"]
    assert [source.captions(i) for i in range(3)] == [("one", "four"), ("three",), ("five",)]
    assert source.classes == ("x", "z")
    assert [source.label(i) for i in range(3)] == [0, None, 1]
    assert [source.split(i) for i in range(3)] == [None, "val", "train"]
    for name in "acd":
        (tmp_path / f"{name}.png").unlink()
    with missing_images(skip=True), pytest.raises(DataError, match="4 of 4 images are not under"):
        open_source(f"csv:{tmp_path / 't.csv'}")
