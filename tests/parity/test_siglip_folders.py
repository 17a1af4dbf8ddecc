"""SigLIP and SigLIP 2 in and out through Hugging Face's folders: the whole path from a JPEG file and a string to a score."""

import io
import json
import re
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diptych.bundle.libraries import library_reasons
from diptych.bundle.open_bundle import export_bundle, open_bundle
from diptych.core.errors import BundleError, ConfigError
from diptych.images.transforms import PixelConfig
from diptych.inference.embedder import Embedder
from diptych.tokenizers.preparation import SIGLIP, SIGLIP_2, TextPreparation
from tests import peers
from tests.parity.siglip_folders import TEXTS, Sizes, photos, siglip_model, with_sentence_pieces, write_folder
from tokenizers import Tokenizer

VOCAB_SIZE = 448
"""Rows of the embedding, more than the tokenizers have."""
SIZES = {
    "plain": Sizes(),
    "rest of 2 px": Sizes(image_px=30, patch_px=7),
    "wide text": Sizes(text_width=80, text_hidden=33),
    "large epsilon": Sizes(eps=1e-3),
}


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def _jpeg(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=95)
    return written.getvalue()


def _big_visions_ids(folder: Path, version: int, context: int) -> torch.Tensor:
    """Lowercase (version 2: A to Z; version 1: without punctuation), words, an end token that is never cut, padding."""
    engine, rows = Tokenizer.from_file(str(folder / "tokenizer.json")), []
    engine.encode_special_tokens = True
    capitals = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
    for text in TEXTS:
        cleaned = text.lower() if version == 1 else text.translate(capitals)
        if version == 1:
            cleaned = text.lower()
            cleaned = re.sub(r"\s+", " ", cleaned.translate(str.maketrans("", "", string.punctuation))).strip()
        ids = engine.encode(cleaned, add_special_tokens=False).ids[: context - 1]
        rows.append([*ids, 1, *[1 if version == 1 else 0] * (context - 1 - len(ids))])
    return torch.tensor(rows)


def _their_scores(model: Any, folder: Path, ids: torch.Tensor, files: list[bytes]) -> NDArray[np.float32]:
    processor = peers.transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor([Image.open(io.BytesIO(file)) for file in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits: NDArray[np.float32] = model(pixel_values=pixels, input_ids=ids).logits_per_image.sigmoid().numpy()
    return logits


def _our_scores(path: Path, files: list[bytes]) -> NDArray[np.float32]:
    bundle = open_bundle(path)
    embedder = Embedder(bundle)
    embedder.on_cut = lambda _: None
    cosine = embedder.encode_images(files) @ embedder.encode_texts(TEXTS).T
    assert bundle.model.logit_bias is not None
    logits = bundle.model.logit_scale.item() * cosine + bundle.model.logit_bias.item()
    scores: NDArray[np.float32] = 1 / (1 + np.exp(-logits))
    return scores


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_from_files_and_strings_to_the_peers_scores(sizes: Sizes, version: int, tmp_path: Path) -> None:
    model = siglip_model(sizes, vocab_size=VOCAB_SIZE)
    folder, files = write_folder(tmp_path / "hub", model, version=version), [_jpeg(photo) for photo in photos()]
    expected = _their_scores(model, folder, _big_visions_ids(folder, version, sizes.context), files)
    found = _our_scores(folder, files)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.std(axis=0).max() > 1e-3
    assert expected.std(axis=1).max() > 1e-3


def test_the_bundle_states_how_pictures_and_texts_are_prepared(version: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hub", siglip_model(Sizes(), vocab_size=VOCAB_SIZE), version=version)
    bundle, halves = open_bundle(folder), (0.5, 0.5, 0.5)
    filters: list[Any] = ["bicubic", "bilinear"]
    assert bundle.config.pixels == PixelConfig(
        mean=halves, std=halves, resize="squash", interpolation=filters[version - 1]
    )
    preparation = SIGLIP if version == 1 else SIGLIP_2
    text = bundle.config.own_text
    assert (text.tokenizer, text.preparation, text.layout, text.is_causal) == (
        "pretrained",
        preparation,
        "siglip",
        False,
    )
    encoded = bundle.tokenizer.encode(TEXTS)
    theirs = _big_visions_ids(folder, version, 12).numpy()
    for row, length, other in zip(encoded.ids, encoded.lengths, theirs, strict=True):
        assert row[:length].tolist() == other[:length].tolist()
        assert set(other[length:].tolist()) <= {preparation.pad_id}


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(image_px=30, patch_px=7, text_width=80)], ids=["plain", "odd"])
def test_transformers_loads_what_is_exported(sizes: Sizes, version: int, tmp_path: Path) -> None:
    model = siglip_model(sizes, vocab_size=VOCAB_SIZE)
    folder, out = write_folder(tmp_path / "hub", model, version=version), tmp_path / "out"
    bundle = open_bundle(folder)
    export_bundle(bundle, "hugging-face", out)
    theirs = peers.transformers.AutoModel.from_pretrained(out).eval()
    assert type(theirs).__name__ == "SiglipModel"
    processor = peers.transformers.AutoProcessor.from_pretrained(out)
    assert type(processor).__name__ == "SiglipProcessor"
    batch = processor.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == _big_visions_ids(folder, version, sizes.context).tolist()
    files = [_jpeg(photo) for photo in photos()]
    expected = _their_scores(theirs, out, batch["input_ids"], files)
    np.testing.assert_allclose(_our_scores(folder, files), expected, atol=1e-4)
    np.testing.assert_array_equal(_our_scores(out, files), _our_scores(folder, files))
    assert open_bundle(out).identities() == bundle.identities()
    assert (out / "diptych_pretrained.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_sentencepiece_model_goes_in_and_out(tmp_path: Path) -> None:
    """google's folders of SigLIP have a `spiece.model`, and `SiglipTokenizer` reads nothing else."""
    model = siglip_model(Sizes(), vocab_size=VOCAB_SIZE)
    folder, out = with_sentence_pieces(write_folder(tmp_path / "hub", model, version=1)), tmp_path / "out"
    bundle = open_bundle(folder)
    assert bundle.config.text.tokenizer == "sentencepiece"
    export_bundle(bundle, "hugging-face", out)
    assert (out / "spiece.model").read_bytes() == (folder / "spiece.model").read_bytes()
    assert open_bundle(out).identities() == bundle.identities()
    encoded = bundle.tokenizer.encode(TEXTS[:-2])  # The others contain special tokens or are cut.
    for path in (folder, out):
        processor = peers.transformers.AutoProcessor.from_pretrained(path)
        assert type(processor.tokenizer).__name__ == "SiglipTokenizer"
        theirs = processor.tokenizer(TEXTS[:-2], padding="max_length", truncation=True)["input_ids"]
        for row, length, other in zip(encoded.ids, encoded.lengths, theirs, strict=True):
            assert row[: min(length, 12)].tolist() == other[: min(length, 12)]
            assert set(other[length:]) <= {1}


def test_a_sentencepiece_model_that_a_library_does_not_support_is_refused(tmp_path: Path) -> None:
    model = siglip_model(Sizes(), vocab_size=VOCAB_SIZE)
    bundle = open_bundle(with_sentence_pieces(write_folder(tmp_path / "hub", model, version=1)))
    assert "its sentencepiece tokenizer" in library_reasons(bundle.config)["open-clip"]
    assert library_reasons(bundle.config)["hugging-face"] == []
    text = replace(bundle.config.text, preparation=TextPreparation(end_id=1, pad_id=1))
    pixels = replace(bundle.config.pixels, resize="pad")
    assert library_reasons(replace(bundle.config, text=text, pixels=pixels))["hugging-face"] == [
        "the borders of its pictures",
        "a sentencepiece tokenizer without SigLIP's text preparation",
    ]


REFUSED: list[tuple[str, tuple[str, ...], Any, str]] = [
    (
        "config.json",
        ("vision_config", "vision_use_head"),
        False,
        "vision_use_head False, so the model has no image embedding",
    ),
    (
        "config.json",
        ("text_config", "projection_size"),
        40,
        "projection_size 40, but the image embeddings have 48 dimensions",
    ),
    (
        "config.json",
        ("vision_config", "image_size"),
        40,
        r"has size .*, but the model's input is 40x40 px \(image_size",
    ),
    ("config.json", ("vision_config", "patch_size"), 33, "not a multiple of patch_px 33"),
    ("config.json", ("text_config", "vocab_size"), 20, "its tokenizer has .* entries, its model 20|expected"),
    ("config.json", ("text_config", "layer_norm_eps"), 2, "text_config has layer_norm_eps 2"),
    ("preprocessor_config.json", ("size",), {"height": 32, "width": 30}, "but the model's input is 32x32 px"),
    ("preprocessor_config.json", ("image_processor_type",), "Siglip2ImageProcessor", "is a NaFlex model"),
    ("preprocessor_config.json", ("resample",), 5, r"has resample 5; Diptych supports 1 \(lanczos\), 2 \(bilinear\)"),
]


@pytest.mark.parametrize(("file", "keys", "value", "message"), REFUSED)
def test_folders_that_are_refused(file: str, keys: tuple[str, ...], value: Any, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hub", siglip_model(Sizes(), vocab_size=VOCAB_SIZE), version=2)
    content = json.loads((folder / file).read_text())
    *parents, last = keys
    node = content
    for parent in parents:
        node = node[parent]
    node[last] = value
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)


def test_a_naflex_model_is_refused_by_name(tmp_path: Path) -> None:
    content = {"model_type": "siglip2", "vision_config": {"hidden_size": 48, "num_patches": 256}, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"is a NaFlex model.*siglip2-b-16-256$") as caught:
        open_bundle(tmp_path)
    assert "\n" not in str(caught.value)


def test_borders_are_not_exported_as_something_else(tmp_path: Path) -> None:
    bundle = open_bundle(write_folder(tmp_path / "hub", siglip_model(Sizes(), vocab_size=VOCAB_SIZE), version=2))
    model = bundle.model
    model.config = replace(model.config, pixels=PixelConfig(resize="pad"))
    with pytest.raises(ConfigError, match="does not support the borders"):
        export_bundle(bundle, "hugging-face", tmp_path / "out")
