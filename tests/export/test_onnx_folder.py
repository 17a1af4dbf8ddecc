"""The files of an ONNX folder, and the results of other programs that use them."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from diptych.bundle.checksums import seal
from diptych.bundle.folder import save_bundle
from diptych.bundle.identity import sampled_identity
from diptych.cli.main import main
from diptych.cli.onnx_report import print_onnx_report
from diptych.core.errors import BundleError, ConfigError, ImageError
from diptych.core.files import sha256_of
from diptych.core.precision import GraphPrecision
from diptych.core.settings import to_plain
from diptych.export.comparison import TowerComparison, check_ids, draw_images, sample_texts
from diptych.export.graphs import data_path
from diptych.export.onnx_folder import export_onnx
from diptych.export.report import check_deviation
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.inference.towers import Model
from diptych.models.config import ImageConfig
from diptych.runtime.onnx_folder import load_onnx
from diptych.tokenizers.load_tokenizer import TokenizerKind
from tests.export.conftest import Exported
from tests.export.makers import CONVNET, RESNET, TEXTS, VIT, picture, run_python_example, small_bundle
from tests.tokenizers.makers import make_tokenizer

ROOT = Path(__file__).parents[2]


def _cosines(bundle: Model, image: Path, texts: list[str]) -> dict[str, float]:
    loaded = LoadedBundle(bundle)
    loaded.embedder.on_cut = lambda _: None
    found = loaded.similarity([image], texts).cosine[0]
    return dict(zip(texts, found.tolist(), strict=True))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def test_the_files(exported: Exported) -> None:
    files = {path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*") if path.is_file()}
    graphs = {f"onnx/{name}_model.onnx{end}" for name in ("vision", "text") for end in ("", "_data")}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "diptych/tokenizer.json"}
    configs = {"config.json", "preprocessor_config.json", "diptych/config.json"}
    assert files == {*graphs, *tokenizer, *configs, "README.md", "example.py", "example.mjs"}
    assert exported.report.files == {name: (exported.folder / name).stat().st_size for name in files}
    assert {path.stat().st_mode & 0o777 for path in exported.folder.rglob("*") if path.is_dir()} == {0o755}


def test_diptychs_config(exported: Exported) -> None:
    content, model = _json(exported.folder / "diptych/config.json"), exported.bundle.model
    assert content == seal(content)
    for name, checksum in content["files"].items():
        assert sha256_of(exported.folder / name) == checksum
    assert sorted(content["files"]) == [
        "diptych/tokenizer.json",
        *(f"onnx/{name}_model.onnx{end}" for name in ("text", "vision") for end in ("", "_data")),
    ]
    assert content["model"] == json.loads(json.dumps(to_plain(exported.bundle.config)))
    assert (content["identity"], content["aliases"]) == (exported.bundle.identity, [sampled_identity(model)])
    assert content["logit_scale"] == model.logit_scale.item()
    assert (content["onnx_format"], content["precision"], content["min_cosine"]) == (1, "fp32", None)
    assert content["origin"] == {"recipe": "small-data"}


def test_the_configs_of_other_libraries(exported: Exported) -> None:
    content = _json(exported.folder / "config.json")
    assert (content["model_type"], content["projection_dim"], content["pad_token_id"]) == ("clip", 32, 0)
    assert content["transformers.js_config"] == {
        "dtype": "fp32",
        "use_external_data_format": {"vision_model.onnx": True, "text_model.onnx": True},
    }
    card = (exported.folder / "README.md").read_text("utf-8")
    assert "convolutional network" in card
    assert "opset 20" in card
    assert "recipe: small-data" in card


def test_the_graphs_name_their_model_but_not_this_machine(exported: Exported) -> None:
    for name, tower in (("vision", "convnet"), ("text", "text")):
        graph = onnx.load(exported.folder / f"onnx/{name}_model.onnx", load_external_data=False)
        metadata = {prop.key: prop.value for prop in graph.metadata_props}
        assert metadata == {"diptych_identity": exported.bundle.identity, "precision": "fp32", "tower": tower}
        assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [exported.report.opset]
    for path in exported.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [part for part in (str(ROOT), str(exported.folder), "site-packages") if part.encode() in content]


def test_what_was_compared(exported: Exported) -> None:
    report = exported.report
    assert (report.images.num, report.texts.num) == (12, len(sample_texts(exported.bundle.tokenizer)))
    assert max(report.images.max_difference, report.texts.max_difference) < 1e-5
    assert report.min_cosine > 0.99999
    speeds = [
        getattr(speed, f"{name}_ms") for speed in (report.torch, report.onnxruntime) for name in ("image", "text")
    ]
    assert min(speeds) > 0


def test_the_python_example(exported: Exported, tmp_path: Path) -> None:
    image = picture(tmp_path / "photo.png")
    shutil.copytree(exported.folder, tmp_path / "elsewhere")
    theirs, ours = run_python_example(tmp_path / "elsewhere", image, TEXTS), _cosines(exported.bundle, image, TEXTS)
    assert theirs == pytest.approx(ours, abs=1e-4)
    assert [*theirs] == sorted(theirs, key=theirs.__getitem__, reverse=True)
    assert np.std([*ours.values()]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "image", "text"),
    [
        ("clip-bpe", VIT, {}),
        ("character", replace(VIT, image_px=(32, 64)), {"pooling": "mean"}),
        ("hashing", RESNET, {"is_causal": False, "pooling": "cls"}),
        ("clip-bpe", replace(VIT, layout="siglip", pooling="attention", width=32), {"layout": "siglip"}),
    ],
)
def test_the_python_example_of_other_models(
    kind: TokenizerKind, image: ImageConfig, text: dict[str, Any], tmp_path: Path
) -> None:
    bundle, photo = small_bundle(kind, image, **text), picture(tmp_path / "photo.png")
    report = export_onnx(bundle, tmp_path / "onnx")
    assert report.has_tokenizer == (kind != "hashing") == (tmp_path / "onnx/example.mjs").exists()
    theirs, ours = run_python_example(tmp_path / "onnx", photo, TEXTS), _cosines(bundle, photo, TEXTS)
    assert theirs == pytest.approx(ours, abs=1e-4)
    assert np.std([*ours.values()]) > 1e-3


@pytest.fixture
def _graphs_are_copied(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports copy the graphs of `exported`, which takes no time, instead of tracing their model."""

    def copy(model: object, path: Path, **options: object) -> None:
        for name in (path.name, data_path(path).name):
            shutil.copy(exported.folder / "onnx" / name, path.with_name(name))

    monkeypatch.setattr("diptych.export.onnx_folder.write_image_graph", copy)
    monkeypatch.setattr("diptych.export.onnx_folder.write_text_graph", copy)


@pytest.mark.usefixtures("_graphs_are_copied")
@pytest.mark.parametrize("tower", ["image_tower", "text_tower"])
def test_a_deviating_graph_is_removed(tower: str, tmp_path: Path) -> None:
    bundle = small_bundle("learned-bpe", CONVNET)
    with torch.no_grad():
        getattr(bundle.model, tower).projection.weight[0] *= 1.5
    with pytest.raises(
        BundleError, match=r"was removed, because its embeddings differ .* for pictures and .* for texts"
    ):
        export_onnx(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(("kind", "image"), [("learned-bpe", CONVNET), ("clip-bpe", VIT)])
def test_smaller_graphs(kind: TokenizerKind, image: ImageConfig, precision: GraphPrecision, tmp_path: Path) -> None:
    bundle, photo = small_bundle(kind, image), picture(tmp_path / "photo.png")
    out = tmp_path / "onnx"
    report = export_onnx(bundle, out, precision=precision, force=True, images=draw_images(24))
    graphs = {name for name in report.files if name.startswith("onnx/")}
    assert graphs == {
        f"onnx/{name}_model_{precision}.onnx{end}" for name in ("vision", "text") for end in ("", "_data")
    }
    assert report.images.num == 12 + (6 if precision == "int8" else 24)
    assert _json(out / "config.json")["transformers.js_config"]["dtype"] == precision
    assert _json(out / "diptych/config.json")["min_cosine"] == report.min_cosine
    assert f"smallest cosine to fp32: {report.min_cosine:.4f}" in (out / "README.md").read_text("utf-8")
    loaded = LoadedBundle(load_onnx(out, verify="full"))
    assert loaded.identity.startswith(bundle.identity)
    full = LoadedBundle(bundle)
    cosines = np.einsum("ne,ne->n", loaded.encode_images([photo]), full.encode_images([photo]))
    assert report.min_cosine - 1e-3 <= cosines[0] < 1 + 1e-6
    theirs, ours = run_python_example(out, photo, TEXTS), _cosines(loaded.bundle, photo, TEXTS)
    assert theirs == pytest.approx(ours, abs=1e-3)


def test_int8_of_a_convnet_needs_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"int8 needs images to calibrate .* --pictures"):
        export_onnx(small_bundle("character", CONVNET), tmp_path / "out", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_the_runtime_gives_the_same_embeddings(exported: Exported, tmp_path: Path) -> None:
    image = picture(tmp_path / "photo.png")
    loaded = LoadedBundle(load_onnx(exported.folder, verify="full"))
    assert loaded.identities == exported.bundle.identities()
    assert loaded.encoder.logit_scale == exported.bundle.logit_scale
    theirs, ours = _cosines(loaded.bundle, image, TEXTS), _cosines(exported.bundle, image, TEXTS)
    assert theirs == pytest.approx(ours, abs=1e-5)


def _compared(difference: float, cosine: float) -> TowerComparison:
    return TowerComparison(num=1, max_difference=difference, min_cosine=cosine)


def test_limits_of_the_deviation(tmp_path: Path) -> None:
    close, far = _compared(9e-5, 0.9901), _compared(1.1e-4, 0.98765)
    for precision in ("fp32", "fp16", "int8"):
        check_deviation(close, close, precision=precision, force=False, folder=tmp_path)
    for other in (far, _compared(float("nan"), float("nan"))):
        with pytest.raises(BundleError, match="for texts; 1e-04 is allowed"):
            check_deviation(close, other, precision="fp32", force=True, folder=tmp_path)
    check_deviation(close, far, precision="int8", force=True, folder=tmp_path)
    broken = _compared(float("nan"), float("nan"))
    for towers in ((broken, close), (close, broken)):
        with pytest.raises(ConfigError, match=r"the embeddings are not numbers \(NaN\) in fp16"):
            check_deviation(*towers, precision="fp16", force=True, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"int8 loses too much: .* 0\.98765 for pictures and 0\.99010 for texts"):
        check_deviation(far, close, precision="int8", force=False, folder=tmp_path)


def test_other_ids_are_an_error() -> None:
    tokenizer = make_tokenizer("character")
    encoded = tokenizer.encode(["a dog", "a"])
    check_ids(encoded.ids.tolist(), encoded, ["a dog", "a"])
    with pytest.raises(BundleError, match="other ids than the bundle for the text 'a'"):
        check_ids([encoded.ids[0].tolist(), [2, 9, 3]], encoded, ["a dog", "a"])


@pytest.mark.parametrize("kind", ["clip-bpe", "learned-bpe", "character", "hashing"])
def test_texts_of_every_length_are_compared(kind: TokenizerKind) -> None:
    tokenizer = make_tokenizer(kind)
    encoded = tokenizer.encode(sample_texts(tokenizer))
    assert {2, tokenizer.context_length} < set(encoded.lengths.tolist())
    assert len(set(encoded.lengths.tolist())) >= 6
    assert encoded.num_cut >= 2
    assert sample_texts(tokenizer) == sample_texts(tokenizer)


def test_drawn_images_differ() -> None:
    images = draw_images()
    assert len({image.tobytes() for image in images}) == len(images) == 12
    assert [image.tobytes() for image in draw_images()] == [image.tobytes() for image in images]


def test_a_folder_in_use_and_an_unreadable_picture(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    bundle = small_bundle("character", CONVNET)
    with pytest.raises(ConfigError, match="already exists and is not empty"):
        export_onnx(bundle, tmp_path)
    with pytest.raises(ImageError, match=r"mine\.txt"):
        export_onnx(bundle, tmp_path / "out", images=[tmp_path / "mine.txt"])
    skipped: list[str] = []
    with pytest.raises(ImageError, match=r"none of the 2 images can be read; the first: .*mine\.txt"):
        export_onnx(
            bundle, tmp_path / "out", images=[tmp_path / "mine.txt"] * 2, on_error=lambda name, _: skipped.append(name)
        )
    assert skipped == [str(tmp_path / "mine.txt")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("_graphs_are_copied")
def test_nothing_private_is_in_the_folder(tmp_path: Path) -> None:
    """Exports are meant to be published, but keep what Diptych reads from the metrics."""
    origin = {"recipe": "small-data", "data": "csv:clients/Acme/a.csv", "init": str(tmp_path / "runs" / "bundle")}
    metrics = {
        "zero_shot": {"top1": 0.5, "per_class": {"Aunt Jane": 1.0}},
        "retrieval": {"pairs": {"threshold": 0.25}},
    }
    bundle = replace(small_bundle("learned-bpe", CONVNET), origin=origin, metrics=metrics)
    out = tmp_path / "out"
    export_onnx(bundle, out)
    written = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    private = (b"Acme", b"Aunt Jane", str(tmp_path).encode())
    assert [(name, words) for name, content in written.items() for words in private if words in content] == []
    loaded = load_onnx(out, verify="full")
    assert loaded.origin == {"recipe": "small-data", "data": "csv:a.csv", "init": "bundle"}
    assert loaded.metrics == {"zero_shot": {"top1": 0.5}, "retrieval": {"pairs": {"threshold": 0.25}}}


def test_the_printed_report(exported: Exported, capsys: pytest.CaptureFixture[str], fresh_console: None) -> None:
    print_onnx_report(exported.report, Path("my model"))
    told = capsys.readouterr().out
    for part in ("my model: fp32, opset 20", "smallest cosine 1.0000", "ONNX Runtime", "'my model' photo.jpg"):
        assert part in told
    assert "No tokenizer.json" not in told
    print_onnx_report(replace(exported.report, has_tokenizer=False), Path("my model"))
    without = capsys.readouterr().out
    assert "No tokenizer.json" in without
    assert "example.mjs'" not in without
    assert re.search(r"onnx/text_model\.onnx_data +0\.\d\d MB", told)
    assert re.search(r"onnx/vision_model\.onnx +[4-9],\d{3} B", told)


@pytest.mark.usefixtures("_graphs_are_copied", "fresh_console")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_bundle(small_bundle("learned-bpe", CONVNET), tmp_path / "bundle")
    picture(tmp_path / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "bundle"), "--to", "onnx", "--out", str(out), "--pictures", str(tmp_path)]
    assert main(words) == 0
    told, warned = capsys.readouterr()
    assert "pictures  13," in told
    assert f"diptych: 1 images could not be read and were left out: {tmp_path / 'broken.jpg'}" in warned
    assert str(out / "example.mjs") in told
    assert main(["similarity", str(out), str(tmp_path / "photo.png"), "a dog"]) == 0
    assert main(words) == 2
    assert "already exists and is not empty" in capsys.readouterr().err
