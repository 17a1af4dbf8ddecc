"""Exports of models with a text preparation: the ids and embeddings of the graph and of the files for other libraries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch

from diptych.bundle.folder import Bundle, load_bundle, save_bundle
from diptych.export.onnx_folder import export_onnx
from diptych.inference.embedder import Embedder
from diptych.runtime.onnx_folder import load_onnx
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.preparation import TextPreparation
from tests import peers
from tests.export.makers import VIT, picture, run_python_example, small_bundle

TEXTS = ["a dog", "Two  DOGS run!", "", "THE QUICK_brown <end> fox", "dog " * 60, "É & ΟΔΟΣ", "the <pad> fox"]
SIGLIP = {"layout": "siglip", "is_causal": False}


class Case(NamedTuple):
    kind: TokenizerKind
    preparation: TextPreparation
    text: dict[str, Any]


CASES = {
    "siglip": Case(
        "pretrained",
        TextPreparation(lowercase=True, remove_punctuation=True, special_tokens="text", end_id=3, pad_id=3),
        SIGLIP,
    ),
    "siglip 2": Case("pretrained", TextPreparation(lowercase=True, case_rule="character", end_id=3), SIGLIP),
    "sentence": Case("pretrained", TextPreparation(start_id=2, end_id=3), {"is_causal": False, "pooling": "mean"}),
    "no added token": Case("pretrained", TextPreparation(pad_id=5), {}),
    "multilingual": Case("pretrained", TextPreparation(start_id=2, end_id=3, stops_at_end=True, clean="lower"), {}),
    "open_clip": Case("pretrained", TextPreparation(clean="canonicalize", special_tokens="text", end_id=3), SIGLIP),
    "sentencepiece": Case("sentencepiece", TextPreparation(lowercase=True, end_id=3, pad_id=3), SIGLIP),
}


class Written(NamedTuple):
    bundle: Bundle
    folder: Path


_SLOW = {"sentence", "open_clip"}
"""An export takes five seconds."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in _SLOW else []) for name in CASES],
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    kind, preparation, text = CASES[request.param]
    bundle = small_bundle(kind, VIT, preparation, **text)
    folder = tmp_path_factory.mktemp("export") / "onnx"
    export_onnx(bundle, folder)  # Compares embeddings and ids.
    return Written(bundle, folder)


def test_the_runtime_and_the_bundle_agree(written: Written, tmp_path: Path) -> None:
    save_bundle(written.bundle, tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle", verify="full")
    assert again.identity == written.bundle.identity == load_onnx(written.folder).identities()[0]
    found = []
    for model in (written.bundle, again, load_onnx(written.folder, verify="full")):
        embedder = Embedder(model)
        embedder.on_cut = lambda _: None
        found.append(embedder.encode_texts(TEXTS))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)


def test_other_libraries_get_the_same_ids(written: Written) -> None:
    if written.bundle.tokenizer.kind == "sentencepiece":
        assert not (written.folder / "tokenizer.json").exists()
        assert "cannot express a sentencepiece model" in (written.folder / "README.md").read_text("utf-8")
        return
    theirs = peers.transformers.AutoTokenizer.from_pretrained(written.folder)
    encoded = written.bundle.tokenizer.encode(TEXTS)
    given = theirs(TEXTS, padding=True, truncation=True, return_tensors="np")
    np.testing.assert_array_equal(given["input_ids"], encoded.ids)


def test_the_python_example(written: Written, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    texts = [text for text in TEXTS if text]
    embedder = Embedder(written.bundle)
    embedder.on_cut = lambda _: None
    expected = (embedder.encode_images([image]) @ embedder.encode_texts(texts).T)[0]
    found = run_python_example(written.folder, image, texts)
    assert found == pytest.approx(dict(zip(texts, expected.tolist(), strict=True)), abs=2e-5)


def test_padding_that_the_mask_counts(written: Written) -> None:
    """Processors of SigLIP pad to the context length and may give a mask of ones, or one that leaves the padding out."""
    if written.bundle.config.own_text.layout != "siglip":
        pytest.skip("only SigLIP's layout attends to padding")
    tokenizer = written.bundle.tokenizer
    encoded = tokenizer.encode(TEXTS)
    length = tokenizer.context_length
    ids = np.full((len(TEXTS), length), tokenizer.pad_id)
    ids[:, : encoded.ids.shape[1]] = encoded.ids
    session = onnxruntime.InferenceSession(written.folder / "onnx/text_model.onnx")
    masks = [np.ones_like(ids), (np.arange(length) < encoded.lengths[:, None]).astype(np.int64)]
    found = [session.run(None, {"input_ids": ids, "attention_mask": mask})[0] for mask in masks]
    embedder = Embedder(written.bundle)
    embedder.on_cut = lambda _: None
    for each in found:
        np.testing.assert_allclose(each, embedder.encode_texts(TEXTS), atol=1e-5)


def test_an_export_is_read_without_torch(written: Written) -> None:
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from diptych.runtime.onnx_folder import load_onnx\n"
        "from diptych.inference.embedder import Embedder\n"
        "embedder = Embedder(load_onnx(Path(sys.argv[1])))\n"
        "print(json.dumps(embedder.encode_texts(['A DOG']).tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code, written.folder], capture_output=True, text=True, check=True)
    expected = Embedder(written.bundle).encode_texts(["A DOG"])
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), expected, atol=1e-5)


def test_siglip_attends_to_padding_of_any_id() -> None:
    """Against transformers' text tower, which gets padded ids."""
    bundle = small_bundle("pretrained", VIT, CASES["siglip"].preparation, **SIGLIP)
    tower = bundle.model.text_tower
    encoded = bundle.tokenizer.encode(["a dog", "two dogs run"])
    ids, lengths = torch.from_numpy(encoded.ids), torch.from_numpy(encoded.lengths)
    padded = torch.full((2, bundle.tokenizer.context_length), 3)
    padded[:, : ids.shape[1]] = ids
    with torch.no_grad():
        torch.testing.assert_close(tower(ids, lengths), tower(padded))
        flat = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)])
        torch.testing.assert_close(tower(flat, lengths), tower(padded))
        other = padded.clone()
        other[padded == 3] = 0
        assert not torch.allclose(tower(other), tower(padded))
