"""Commands as a person types them: one line of error and code 2, JSON that parses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.core.cpu import has_fast_int8
from diptych.data.sources.cifar import CIFAR100
from diptych.data.sources.shapes import CLASSES
from diptych.training.config import TrainConfig, write_config
from tests.cli.makers import error_of
from tests.data.makers import python_files

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def places(tiny_bundle: Path, photos: Path, flickr_folder: Path) -> dict[str, str]:
    """What the capital words of a command line stand for."""
    return {"BUNDLE": str(tiny_bundle), "PHOTOS": str(photos), "FLICKR": str(flickr_folder)}


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian demo", "train"),
        ("train", "name data to train on, a recipe ("),
        ("train dmo", "did you mean 'demo'"),
        ("train demo --schedule.small-first [[0.5,32]]", "small_first needs a tower that reads any size"),
        ("train small-data --preset vit-b-32 --data json:/nowhere.json", "/nowhere.json: no such file"),
        ("train small-data --model.image.image-px 80", "small_first has 96 px; it must be a multiple of 16"),
        ("train demo --preset shapes-dem", "did you mean 'shapes-demo'"),
        ("train demo --data shape:5", "did you mean 'shapes'"),
        ("train demo --data json:/nowhere.json", "/nowhere.json: no such file"),
        ("train demo --data flickr30k:/nowhere", "/nowhere: no such folder"),
        ("train demo --bach-size 3", "--batch-size"),
        ("train demo --batch-size many", "many"),
        ("train demo --batch-size 1", "batch_size is 1"),
        ("train demo --batch-size 7000", "larger than the training data"),
        ("train demo --optimiser.lr 1", "did you mean 'optimizer.lr'"),
        ("train demo --optimizer.lr", "--optimizer.lr needs a value"),
        ("train demo --optimizer.lr fast", "'optimizer.lr' is 'fast'"),
        ("train demo --model.image.widht 3", "unknown setting 'model.image.widht'; did you mean 'model.image.width'?"),
        ("train demo --model.image.width wide", "'model.image.width' is 'wide': input should be a valid integer"),
        ("train demo --model.image.kind cnn", "'model.image.kind' is 'cnn'; known: 'vit', 'resnet', 'convnet'"),
        ("train demo --init x --model.text.layers 2 --preset small", "it excludes --model.text.layers, --preset"),
        ("train demo --init /nowhere --steps 1", "/nowhere: no such file or folder"),
        ("import /nowhere --out x", "/nowhere: no such file or folder"),
        ("import /nowhere", "--out"),
        ("import /nowhere --out x --activation relu", "relu"),
        ("import /nowhere --out x --preset vit-b-32", "--preset is only for weights files"),
        ("export /nowhere --to open-clip --out x", "/nowhere: no such file or folder"),
        ("export /nowhere --to coreml --out x", "coreml"),
        ("export /nowhere --to onnx --out x", "/nowhere: no such file or folder"),
        ("export /nowhere --to onnx --out x --pictures /nowhere/else", "/nowhere/else: no such folder"),
        ("export /nowhere --to onnx --out x --precision bf16", "bf16"),
        ("export /nowhere --to open-clip --out x --precision int8", "--precision is for --to onnx"),
        ("export /nowhere --to hugging-face --out x --force", "--force is for --to onnx"),
        ("train demo --set eps", "write path=value"),
        ("train demo --epochs 3 --steps 3", "exclude each other"),
        ("train demo --device tpu", "no device 'tpu'"),
        ("train demo --config x.yaml", "exclude each other"),
        ("train --config /nowhere.yaml", "/nowhere.yaml: cannot be read"),
        ("train --resume /nowhere", "/nowhere: holds no run to resume"),
        ("train --resume /nowhere --lr 1", "it excludes all other options"),
        ("evaluate retrieval /nowhere --data shapes:9", "/nowhere: no such file or folder"),
        ("evaluate retrieval /nowhere", "--data"),
        ("similarity /nowhere x.png text", "/nowhere: no such file or folder"),
        ("presets --jsn", "--json"),
    ],
)
def test_a_wrong_word_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], line: str, says: str) -> None:
    assert says in error_of(capsys, *line.split())
    assert list(Path().iterdir()) == []  # And leaves nothing behind.


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("classify BUNDLE PHOTOS/a.png --classes", "the list of classes is empty"),
        ("classify BUNDLE PHOTOS/a.png", "--classes"),
        ("classify BUNDLE --classes a b", "no image given"),
        ("classify BUNDLE PHOTOS/a.png --classes a b a", "given more than once: a"),
        ("classify BUNDLE PHOTOS/a.png --classes a b --template photo", "has no {} for the class name"),
        ("classify BUNDLE PHOTOS/a.png --classes a b --top 0", "top is 0"),
        ("classify BUNDLE PHOTOS/gone.png --classes a b", "gone.png: no such file"),
        ("similarity BUNDLE PHOTOS/a.png", "text"),
        ("similarity BUNDLE PHOTOS/gone text", "gone: no such file"),
        ("similarity BUNDLE http://127.0.0.1:1/a.png text", "is a URL, and those are read only where you say so"),
        ("classify BUNDLE PHOTOS/a.png --classes a b --threshold high", "must be a cosine within [-1, 1], or auto"),
        ("classify BUNDLE PHOTOS/a.png --classes a b --precision fp64", "fp64"),
        ("similarity PHOTOS PHOTOS/a.png text", "PHOTOS: is neither a bundle"),
        ("rank-images BUNDLE /nowhere red", "/nowhere: no such folder"),
        ("rank-images BUNDLE . red", "holds no pictures"),
        ("rank-images BUNDLE PHOTOS red --top 0", "top is 0"),
        ("rank-images BUNDLE PHOTOS red --sheet /nowhere/x.png", "/nowhere/x.png: cannot be written"),
        ("rank-texts BUNDLE PHOTOS/a.png --texts /nowhere.txt", "/nowhere.txt: cannot be read"),
        ("rank-texts BUNDLE PHOTOS/a.png --texts PHOTOS/a.png", "a.png: is not UTF-8 text"),
        ("evaluate retrieval BUNDLE --data shapes:9 --split dev", "no split 'dev'"),
        ("evaluate retrieval BUNDLE --data shapes:9 --max-samples 0", "max"),
        ("evaluate zero-shot BUNDLE --data flickr30k:FLICKR --split all", "the data has no labels"),
        ("evaluate zero-shot BUNDLE --data shapes:9 --classes a b", "2 class names given, but the data has 18"),
        ("evaluate zero-shot BUNDLE --data shapes:9 --template photo", "template 'photo' has no {} for the class"),
        (
            f"evaluate zero-shot BUNDLE --data shapes:9 --classes {' '.join(map(str, range(18)))}",
            "classes have no sample",
        ),
        ("evaluate retrieval BUNDLE --data shapes:9 --captions two", "--captions"),
        ("evaluate probe BUNDLE --data shapes:9 --split train", "--split and --train-split are both train"),
        ("evaluate knn BUNDLE --data shapes:9 --neighbours 0", "neighbours is 0"),
        ("evaluate knn BUNDLE --data flickr30k:FLICKR --split all", "the data has no labels"),
        ("evaluate compare BUNDLE --data shapes:9", "at least two bundles"),
    ],
)
def test_a_wrong_use_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], places: dict[str, str], line: str, says: str
) -> None:
    for name, place in places.items():
        line, says = line.replace(name, place), says.replace(name, place)
    assert says in error_of(capsys, *line.split())


def test_json_of_every_command(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photos: Path) -> None:
    bundle, image = str(tiny_bundle), str(photos / "a.png")
    texts = photos / "texts.txt"
    texts.write_text("\ufeffa red circle\n\n  blue \n", "utf-8")
    similar = _json(capsys, "similarity", bundle, image, "a red circle", "ein Käse")
    assert similar["texts"] == ["a red circle", "ein Käse"]
    assert sum(similar["probability"][0]) == pytest.approx(1, abs=1e-5)
    (answer,) = _json(capsys, "classify", bundle, image, "--classes", "red circle", "blue square", "--template", "a {}")
    assert answer["image"] == image
    assert {score["name"] for score in answer["scores"]} == {"red circle", "blue square"}
    found = _json(capsys, "rank-images", bundle, str(photos), "a red circle", "--top", "2")
    assert [len(found["results"]), found["skipped"]] == [2, []]
    said = _json(capsys, "rank-texts", bundle, image, "--texts", str(texts))
    assert {result["item"] for result in said["results"]} == {"a red circle", "blue"}
    recall = _json(capsys, "evaluate", "retrieval", bundle, "--data", "shapes:9", "--max-samples", "20")
    assert recall["protocol"]["images"] == 20
    shot = _json(capsys, "evaluate", "zero-shot", bundle, "--data", "shapes:9", "--max-samples", "20")
    assert shot["protocol"]["templates"] == 3  # the drawn shapes bring their own
    assert shot["protocol"]["classes"] == 18
    few = ("--data", "shapes:90", "--max-samples", "20")
    assert _json(capsys, "evaluate", "probe", bundle, *few)["protocol"]["images"] == 20
    assert _json(capsys, "evaluate", "knn", bundle, *few)["top1"] >= 0
    assert len(_json(capsys, "evaluate", "robustness", bundle, *few)["disturbed"]) == 5
    assert len(_json(capsys, "evaluate", "compare", bundle, bundle, *few)["own"]) == 2
    assert set(_json(capsys, "presets")) >= {"shapes-demo"}
    assert set(_json(capsys, "recipes")) >= {"demo"}


def test_cifar_100_as_it_is_published(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")  # Its card gets the figures.
    data = f"cifar100:{python_files(CIFAR100, tmp_path / 'cifar')}"
    words = [
        "evaluate",
        "zero-shot",
        str(bundle),
        "--data",
        data,
        "--split",
        "test",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Zero-shot on test: 2 images, 3 classes" in out
    assert "templates 5" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "confusion.png", "answers.png"}


def test_tables(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photos: Path) -> None:
    bundle, image = str(tiny_bundle), str(photos / "a.png")
    for words, says in (
        (["similarity", bundle, image, "a [red] circle", "blue"], "a [red] circle"),
        (["classify", bundle, image, "--classes", "red circle", "blue square", "--top", "1"], " %"),
        (["evaluate", "zero-shot", bundle, "--data", "shapes:9", "--max-samples", "20"], "Zero-shot on val: 20 images"),
        (["presets"], "shapes-demo"),
        (["recipes"], "flickr30k-small"),
    ):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert says in out
        assert err == ""


def test_rank_images_skips_what_is_broken_and_draws_the_rest(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photos: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"")
    sheet = photos.parent / "sheet.png"
    assert main(["rank-images", str(tiny_bundle), str(photos), "red", "--top", "6", "--sheet", str(sheet)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("diptych: 1 images could not be read")
    assert "broken.jpg" in err
    assert "a.png" in out
    assert sheet.stat().st_size > 1000


def test_every_use_draws(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle, image = str(tiny_bundle), str(photos / "a.png")
    (tmp_path / "texts.txt").write_text("a red circle\na blue square\n", encoding="utf-8")
    drawn = tmp_path / "drawn.png"
    for words in (
        ["similarity", bundle, str(photos), "red", "blue", "--plot", str(drawn)],
        ["classify", bundle, str(photos), "--classes", "red", "blue", "--threshold", "auto", "--sheet", str(drawn)],
        ["rank-images", bundle, str(photos), f'"red" - 0.5*"blue" + {image}', "--sheet", str(drawn)],
        ["rank-texts", bundle, image, "--texts", str(tmp_path / "texts.txt"), "--sheet", str(drawn)],
    ):
        assert main(words) == 0
        assert str(drawn) in capsys.readouterr().out
        assert drawn.stat().st_size > 1000
        drawn.unlink()
    texts = ["rank-texts", bundle, f"{image} - blue", "--texts", str(tmp_path / "texts.txt")]
    assert [found["item"] for found in _json(capsys, *texts)["results"]]
    gone = ["rank-texts", bundle, str(photos / "gone.png"), *texts[3:]]
    assert "gone.png: no such file" in error_of(capsys, *gone)
    assert "needs a single image" in error_of(capsys, *texts, "--sheet", str(drawn))
    if has_fast_int8():
        assert main(["classify", bundle, image, "--classes", "red", "blue", "--precision", "int8"]) == 0
        assert "int8: minimum cosine with fp32 0.99" in capsys.readouterr().out


def test_train_by_config_then_refused_then_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_run: TrainConfig
) -> None:
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    write_config(tiny_run, config)
    assert main(["train", "--config", str(config), "--out", str(run), "--steps", "2", "--optimizer.eps", "1e-7"]) == 0
    out, _ = capsys.readouterr()
    assert f"Bundle: {run / 'bundle'}" in out
    assert "eps: 1.0e-07" in (run / "config.yaml").read_text("utf-8")
    assert "already holds a run" in error_of(capsys, "train", "--config", str(config), "--out", str(run))
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(run), "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0


def test_a_config_with_init_excludes_another_model(
    capsys: pytest.CaptureFixture[str], tiny_run: TrainConfig, tmp_path: Path
) -> None:
    write_config(replace(tiny_run, init="somewhere"), tmp_path / "init.yaml")
    err = error_of(capsys, "train", "--config", str(tmp_path / "init.yaml"), "--preset", "small")
    assert "--init determines the model; it excludes --preset" in err


def test_import_replaces_bundles_alone(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    bundle, out = str(tiny_bundle), str(tmp_path / "copy")
    assert "is not a bundle that can be replaced" in error_of(
        capsys, "import", bundle, "--out", str(tmp_path / "mine"), "--overwrite"
    )
    assert "is not a bundle that can be replaced" in error_of(capsys, "import", bundle, "--out", bundle, "--overwrite")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep"
    assert main(["import", bundle, "--out", out]) == 0
    assert "already exists" in _fails_after(capsys, "import", bundle, "--out", out)
    assert main(["import", bundle, "--out", out, "--overwrite"]) == 0
    (tmp_path / "copy" / "weights.pt").write_text("keep")
    for name, says in ((bundle, "holds weights.pt"), (f"{out}/weights.pt", "is not a bundle that can be replaced")):
        assert says in _fails_after(capsys, "import", name, "--out", out, "--overwrite")
    assert (tmp_path / "copy" / "weights.pt").read_text() == "keep"
    there = str(tmp_path / "mine")
    assert "already exists" in error_of(capsys, "export", out, "--to", "open-clip", "--out", there)


def _fails_after(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    return error_of(capsys, *words)


def test_data_is_shown_and_written_as_tars(
    capsys: pytest.CaptureFixture[str], flickr_folder: Path, tmp_path: Path
) -> None:
    assert main(["data", "show", str(flickr_folder), "-n", "3", "--out", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
    out = str(tmp_path / "tars")
    assert main(["data", "shards", str(flickr_folder), out, "--per-shard", "3"]) == 0
    said = capsys.readouterr().out
    assert "4 samples in 2 tars" in said
    assert f"--data 'shards:{out}/{{00000..00001}}.tar'" in said
    assert "holds tars already" in error_of(capsys, "data", "shards", str(flickr_folder), out)
    assert "num is 0" in error_of(capsys, "data", "show", str(flickr_folder), "-n", "0")
    assert "cannot be written" in error_of(capsys, "data", "show", str(flickr_folder), "--out", "/nowhere/x.png")


def test_data_is_audited(capsys: pytest.CaptureFixture[str], flickr_folder: Path, tmp_path: Path) -> None:
    (flickr_folder / "images" / "4.jpg").write_bytes((flickr_folder / "images" / "1.jpg").read_bytes())
    (flickr_folder / "images" / "2.jpg").write_bytes(b"broken")
    assert main(["data", "audit", str(flickr_folder), "--out", str(tmp_path / "audit")]) == 0
    said = capsys.readouterr().out
    assert "1 group of 2: 1.jpg = 4.jpg" in said
    assert "1: 2.jpg (" in said
    assert {path.name for path in (tmp_path / "audit").iterdir()} == {"audit.json", "histograms.png", "suspicious.png"}
    found = _json(capsys, "data", "audit", str(flickr_folder))
    assert found == json.loads((tmp_path / "audit" / "audit.json").read_text("utf-8"))
    assert found["across_splits"] == [["1.jpg", "4.jpg"]]
    tsv = flickr_folder / "rows.tsv"
    tsv.write_text("image\tcaption\n" + "".join(f"images/{i}.jpg\tpicture {i}\n" for i in (1, 3, 4)), "utf-8")
    assert _json(capsys, "data", "audit", str(tsv))["splits"] == {"by key": 3}
    cut = _json(capsys, "data", "audit", str(tsv), "--split-by", "run", "--val-fraction", "0.6")
    assert sum(cut["splits"].values()) == 3
    assert "by key" not in cut["splits"]
    assert cut["across_splits"] == []


def test_the_words_of_the_command_line_are_those_of_the_library() -> None:
    """Spelled out in `cli`, which imports nothing heavy; here they are held to their homes."""
    from diptych.bundle.open_bundle import ExportFormat
    from diptych.cli import weights
    from diptych.models.config import Activation

    assert get_args(weights.Activation) == get_args(Activation)
    assert get_args(weights.Target) == (*get_args(ExportFormat), "onnx")


def test_given_classes_are_shown_beside_the_datas_own(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"name-{number}" for number in range(len(CLASSES))]
    call = ["evaluate", "zero-shot", str(tiny_bundle), "--data", "shapes:9", "--max-samples", "20", "--classes", *names]
    assert main(call) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for number, name in enumerate(CLASSES):
        assert [*name.split(), str(number), f"name-{number}"] in rows
