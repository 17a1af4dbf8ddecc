import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.bundle import folder as folder_module
from diptych.bundle.checksums import seal
from diptych.bundle.folder import FILES, Bundle, add_metrics, load_bundle, save_bundle
from diptych.core.errors import BundleError
from diptych.core.files import sha256_of
from diptych.data.open_source import open_source
from diptych.inference.embedder import Embedder
from tests.bundle.makers import reseal


def _embeddings(bundle: Bundle) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    source, embedder = open_source("shapes:8"), Embedder(bundle)
    images = embedder.encode_images([source[i].image for i in range(8)])
    return np.concatenate([images, embedder.encode_texts([source.captions(i)[-1] for i in range(8)])])


def test_saved_and_loaded_embeds_bit_for_bit_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    first = load_bundle(tiny_bundle)
    save_bundle(first, tmp_path / "deep" / "copy")
    second = load_bundle(tmp_path / "deep" / "copy")
    assert np.array_equal(_embeddings(first), _embeddings(second))
    assert (second.config, second.metrics, second.origin) == (first.config, first.metrics, first.origin)
    assert not second.model.training
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]


def test_a_bundle_is_what_the_format_says(tiny_bundle: Path) -> None:
    assert {path.name for path in tiny_bundle.iterdir()} == {*FILES, "README.md"}
    config = json.loads((tiny_bundle / "config.json").read_text("utf-8"))
    assert config["format_version"] == 3
    for name in ("model.safetensors", "tokenizer.json"):
        assert config["files"][name] == sha256_of(tiny_bundle / name)
    assert config == seal(config)
    assert config["origin"]["steps"] == 10
    assert set(config["metrics"]) == {"during_training", "retrieval"}
    assert config["metrics"]["retrieval"]["protocol"]["split"] == "val"
    assert config["logit_scale"] == pytest.approx(load_bundle(tiny_bundle).model.logit_scale.item(), abs=1e-4)


@pytest.mark.parametrize("missing", FILES)
def test_incomplete(bundle: Path, missing: str) -> None:
    (bundle / missing).unlink()
    with pytest.raises(BundleError, match=f"is incomplete; {missing} is missing"):
        load_bundle(bundle)


def test_not_a_bundle(tmp_path: Path, finished_run: Path, tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no such file or folder"):
        load_bundle(tmp_path / "gone")
    with pytest.raises(BundleError, match=r"is neither a bundle, which has config.json"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="is neither a folder nor a file of weights"):
        load_bundle(tiny_bundle / "config.json")
    with pytest.raises(BundleError, match=f"is a run, not a bundle; its bundle is {finished_run}/bundle"):
        load_bundle(finished_run)


@pytest.mark.parametrize("size", [0, 100, -40])
def test_damaged_weights(bundle: Path, size: int) -> None:
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    reseal(bundle)
    with pytest.raises(BundleError, match=r"model.safetensors: is damaged") as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["drop", "shape"])
def test_weights_of_another_model(bundle: Path, change: str) -> None:
    weights = load_file(bundle / "model.safetensors")
    if change == "drop":
        del weights["image_tower.class_emb"]
    else:
        weights["image_tower.class_emb"] = torch.zeros(3)
    save_file(weights, bundle / "model.safetensors")
    reseal(bundle)
    with pytest.raises(BundleError, match=r"model.safetensors: does not fit its config.json: .*class_emb") as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json: is not JSON"),
        ("config.json", "[]", "format_version is None"),
        ("config.json", '{"format_version": 1}', "format_version is 1; this Diptych reads 2 and 3"),
        ("config.json", '{"format_version": 2}', "config.json"),
        ("config.json", '{"format_version": 3}', "config.json: is damaged or was edited"),
        ("config.json", '{"format_version": 2, "model": {"widht": 3}}', "unknown setting 'widht'"),
        ("config.json", '{"format_version": 2, "metrics": [], "model": {}}', "its metrics is not an object"),
        ("config.json", "[" * 100_000, "nested more than 64 deep"),
        ("tokenizer.json", "{}", "tokenizer.json: is damaged"),
        ("tokenizer.json", "", "tokenizer.json: is damaged"),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json: is damaged"),
    ],
)
def test_damaged_files(bundle: Path, file: str, content: str, message: str) -> None:
    (bundle / file).write_text(content)
    if file != "config.json":
        reseal(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_tokenizer_of_another_model(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text("utf-8"))
    weights = load_file(bundle / "model.safetensors")
    config["model"]["text"]["vocab_size"] += 1
    old = weights["text_tower.token_emb.weight"]
    weights["text_tower.token_emb.weight"] = torch.cat([old, old[:1]])
    save_file(weights, bundle / "model.safetensors")
    reseal(bundle, model=config["model"])
    with pytest.raises(BundleError, match=r"its tokenizer has \d+ entries, its model \d+"):
        load_bundle(bundle)


def test_saving_over_an_old_one_leaves_nothing_of_it(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    (bundle / "leftover.txt").write_text("old")
    save_bundle(loaded, bundle)
    assert {path.name for path in bundle.iterdir()} == {*FILES, "README.md"}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_write_that_fails_leaves_the_old_one_and_no_half(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, before = load_bundle(bundle), (bundle / "model.safetensors").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "write_weights", full_disk)
    with pytest.raises(BundleError, match=r"bundle: cannot be written \(No space left on device\)"):
        save_bundle(loaded, bundle)
    assert (bundle / "model.safetensors").read_bytes() == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_metrics_are_added_to_what_is_there(bundle: Path) -> None:
    before = load_bundle(bundle).metrics
    add_metrics(bundle, {"zero_shot": {"top1": 0.5}})
    assert load_bundle(bundle).metrics == {**before, "zero_shot": {"top1": 0.5}}
    assert len(list(bundle.iterdir())) == 4
