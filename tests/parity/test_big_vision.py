"""big_vision's checkpoints give the embeddings of its formulas, written here in plain NumPy on the arrays of the archive."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diptych.bundle.open_bundle import open_bundle
from diptych.core.errors import BundleError
from diptych.models.config import ViTConfig
from tests.parity.siglip_folders import TEXTS, gemma_tokenizer, t5_tokenizer

Arrays = dict[str, NDArray[np.float64]]
PATCH, SIDE, WIDTH, HEADS, HIDDEN, LAYERS = 4, 3, 24, 3, 50, 2
TEXT_WIDTH, TEXT_HEADS, TEXT_HIDDEN, TEXT_LAYERS, CONTEXT, ROWS = 16, 2, 40, 3, 10, 420


def _dense(rng: np.random.Generator, name: str, *shape: int, bias: tuple[int, ...]) -> Arrays:
    return {f"{name}/kernel": rng.normal(0, 0.2, shape), f"{name}/bias": rng.normal(0, 0.2, bias)}


def _norm(rng: np.random.Generator, name: str, width: int) -> Arrays:
    return {f"{name}/scale": rng.normal(1, 0.2, (width,)), f"{name}/bias": rng.normal(0, 0.2, (width,))}


def _attention(rng: np.random.Generator, name: str, width: int, heads: int) -> Arrays:
    each, name = width // heads, f"{name}/MultiHeadDotProductAttention_0"
    arrays = _dense(rng, f"{name}/out", heads, each, width, bias=(width,))
    for part in ("query", "key", "value"):
        arrays |= _dense(rng, f"{name}/{part}", width, heads, each, bias=(heads, each))
    return arrays


def _mlp(rng: np.random.Generator, name: str, width: int, hidden: int) -> Arrays:
    first = _dense(rng, f"{name}/MlpBlock_0/Dense_0", width, hidden, bias=(hidden,))
    return first | _dense(rng, f"{name}/MlpBlock_0/Dense_1", hidden, width, bias=(width,))


def _encoder(rng: np.random.Generator, name: str, sizes: tuple[int, int, int, int]) -> Arrays:
    width, heads, hidden, layers = sizes
    arrays = _norm(rng, f"{name}/encoder_norm", width)
    for i in range(layers):
        block = f"{name}/encoderblock_{i}"
        arrays |= _attention(rng, block, width, heads) | _mlp(rng, block, width, hidden)
        arrays |= _norm(rng, f"{block}/LayerNorm_0", width) | _norm(rng, f"{block}/LayerNorm_1", width)
    return arrays


def _arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        **_dense(rng, "img/embedding", PATCH, PATCH, 3, WIDTH, bias=(WIDTH,)),
        "img/pos_embedding": rng.normal(0, 1, (1, SIDE**2, WIDTH)),
        **_encoder(rng, "img/Transformer", (WIDTH, HEADS, HIDDEN, LAYERS)),
        "img/MAPHead_0/probe": rng.normal(0, 1, (1, 1, WIDTH)),
        **_attention(rng, "img/MAPHead_0", WIDTH, HEADS),
        **_norm(rng, "img/MAPHead_0/LayerNorm_0", WIDTH),
        **_mlp(rng, "img/MAPHead_0", WIDTH, HIDDEN),
        "txt/Embed_0/embedding": rng.normal(0, 1, (ROWS, TEXT_WIDTH)),
        "txt/pos_embedding": rng.normal(0, 1, (1, CONTEXT, TEXT_WIDTH)),
        **_encoder(rng, "txt/Encoder_0", (TEXT_WIDTH, TEXT_HEADS, TEXT_HIDDEN, TEXT_LAYERS)),
        **_dense(rng, "txt/head", TEXT_WIDTH, WIDTH, bias=(WIDTH,)),
        "t": np.array([2.1]),
        "b": np.array([-7.5]),
    }


def _scanned(arrays: Arrays) -> Arrays:
    """The arrays as `nn.scan` stores them: those of all blocks stacked."""
    found = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    for name in [name for name in arrays if "encoderblock_0" in name]:
        layers = TEXT_LAYERS if name.startswith("txt") else LAYERS
        stack = [arrays[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(layers)]
        found[name.replace("encoderblock_0", "encoderblock")] = np.stack(stack)
    return found


def _write(folder: Path, arrays: Arrays, *, name: str = "siglip", prefix: str = "params/", version: int = 2) -> Path:
    path = folder / f"{name}.npz"
    named: dict[str, Any] = {prefix + key: array.astype(np.float32) for key, array in arrays.items()}
    np.savez(path, **named)
    tokenizer = t5_tokenizer() if version == 1 else gemma_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    return path


def _normed(arrays: Arrays, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    centered = x - x.mean(axis=-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
    result: NDArray[np.float64] = scaled * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]
    return result


def _attended(arrays: Arrays, name: str, q: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    name = f"{name}/MultiHeadDotProductAttention_0"
    query, key, value = (
        np.einsum("bld,dhe->blhe", side, arrays[f"{name}/{part}/kernel"]) + arrays[f"{name}/{part}/bias"]
        for side, part in ((q, "query"), (x, "key"), (x, "value"))
    )
    logits = np.einsum("bqhe,bkhe->bhqk", query / math.sqrt(query.shape[-1]), key)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhe->bqhe", weights, value)
    result: NDArray[np.float64] = np.einsum("bqhe,hed->bqd", mixed, arrays[f"{name}/out/kernel"])
    return result + arrays[f"{name}/out/bias"]


def _mlped(arrays: Arrays, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    first, second = f"{name}/MlpBlock_0/Dense_0", f"{name}/MlpBlock_0/Dense_1"
    x = x @ arrays[f"{first}/kernel"] + arrays[f"{first}/bias"]
    x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # flax's GELU.
    return x @ arrays[f"{second}/kernel"] + arrays[f"{second}/bias"]


def _encoded(arrays: Arrays, name: str, x: NDArray[np.float64], layers: int) -> NDArray[np.float64]:
    for i in range(layers):
        block = f"{name}/encoderblock_{i}"
        y = _normed(arrays, f"{block}/LayerNorm_0", x)
        x = x + _attended(arrays, block, y, y)
        x = x + _mlped(arrays, block, _normed(arrays, f"{block}/LayerNorm_1", x))
    return _normed(arrays, f"{name}/encoder_norm", x)


def _image_emb(arrays: Arrays, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of pixels in the order batch, row, column, channel, as in TensorFlow."""
    rows = pixels[:, : SIDE * PATCH, : SIDE * PATCH].reshape(-1, SIDE, PATCH, SIDE, PATCH, 3)
    x = np.einsum("brhcwi,hwid->brcd", rows, arrays["img/embedding/kernel"]) + arrays["img/embedding/bias"]
    x = x.reshape(len(x), SIDE**2, WIDTH) + arrays["img/pos_embedding"]
    x = _encoded(arrays, "img/Transformer", x, LAYERS)
    probe = np.tile(arrays["img/MAPHead_0/probe"], (len(x), 1, 1))
    x = _attended(arrays, "img/MAPHead_0", probe, x)
    x = (x + _mlped(arrays, "img/MAPHead_0", _normed(arrays, "img/MAPHead_0/LayerNorm_0", x)))[:, 0]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _text_emb(arrays: Arrays, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    x = arrays["txt/Embed_0/embedding"][ids] + arrays["txt/pos_embedding"]
    x = _encoded(arrays, "txt/Encoder_0", x, TEXT_LAYERS)[:, -1]
    x = x @ arrays["txt/head/kernel"] + arrays["txt/head/bias"]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("change", [dict, _scanned], ids=["blocks", "scanned"])
@pytest.mark.parametrize("prefix", ["params/", ""])
def test_embeddings_are_those_of_the_formulas(change: Callable[[Arrays], Arrays], prefix: str, tmp_path: Path) -> None:
    arrays = _arrays()
    bundle = open_bundle(_write(tmp_path, change(arrays), prefix=prefix))
    pixels = np.random.default_rng(1).normal(size=(3, 12, 12, 3))
    ids = np.random.default_rng(2).integers(0, ROWS, (4, CONTEXT))
    with torch.no_grad():
        image_emb = bundle.model.encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float())
        text_emb = bundle.model.encode_text(torch.from_numpy(ids))
    np.testing.assert_allclose(image_emb.numpy(), _image_emb(arrays, pixels), atol=1e-5)
    np.testing.assert_allclose(text_emb.numpy(), _text_emb(arrays, ids), atol=1e-5)
    assert bundle.model.logit_scale.item() == pytest.approx(math.exp(2.1))
    assert bundle.model.logit_bias is not None
    assert bundle.model.logit_bias.item() == -7.5


@pytest.mark.parametrize("version", [1, 2])
def test_texts_are_prepared_as_big_vision_prepares_them(version: int, tmp_path: Path) -> None:
    bundle = open_bundle(_write(tmp_path, _arrays(), version=version))
    encoded = bundle.tokenizer.encode(TEXTS)
    assert (bundle.tokenizer.start_id, bundle.tokenizer.end_id, bundle.tokenizer.pad_id) == (None, 1, 2 - version)
    assert all(row[length - 1] == 1 for row, length in zip(encoded.ids, encoded.lengths.clip(max=CONTEXT), strict=True))
    first, second = bundle.tokenizer.encode(["A DOG, running!", "a dog running"]).ids
    assert (first.tolist() == second.tolist()) is (version == 1)
    assert bundle.config.pixels.resize == "squash"


@pytest.mark.parametrize(
    ("name", "image_px"), [("siglip_so400_123", 12), ("siglip_so4_14px", 14), ("13_siglip_99", 13)]
)
def test_the_image_size_is_that_in_the_name(name: str, image_px: int, tmp_path: Path) -> None:
    """3 patches of 4 px cover 12 px, and begin in pictures of up to 15 px."""
    image = open_bundle(_write(tmp_path, _arrays(), name=name)).config.image
    assert isinstance(image, ViTConfig)
    assert (image.image_px, image.grid) == (image_px, (3, 3))


def test_bfloat16_is_read(tmp_path: Path) -> None:
    arrays = {f"params/{name}": array for name, array in _arrays().items()}
    halves: dict[str, Any] = {
        name: torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2") for name, array in arrays.items()
    }
    _write(tmp_path, _arrays())
    np.savez(tmp_path / "halves.npz", **halves)
    weights = open_bundle(tmp_path / "halves.npz").model.state_dict()
    expected = torch.from_numpy(_arrays()["txt/Embed_0/embedding"]).bfloat16().float()
    assert torch.equal(weights["text_tower.token_emb.weight"], expected)


def _without(*names: str) -> Callable[[dict[str, Any]], Any]:
    return lambda arrays: [arrays.pop(name) for name in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without("img/embedding/kernel"),
            "is not a two-tower checkpoint of big_vision: img/embedding/kernel is missing",
        ),
        (_without("img/MAPHead_0/probe"), "arrays are missing: img/MAPHead_0/probe"),
        (lambda a: a.update({"img/head/kernel": np.zeros((3, 3))}), "unexpected arrays: img/head/kernel"),
        (lambda a: a.update({"txt/head/bias": np.zeros(5)}), "txt/head/bias is 5, which does not fit"),
        (lambda a: a.update({"img/pos_embedding": np.zeros((1, 8, WIDTH))}), "has 8 positions for patches of 4x4 px"),
        (lambda a: a.update({"t": np.array([np.nan])}), "t is not finite"),
        (lambda a: a.update({"txt/head/kernel": np.zeros((TEXT_WIDTH, 5))}), "embed_dim is 5"),
        (
            lambda a: a.update({"txt/Embed_0/embedding": np.zeros((3, TEXT_WIDTH))}),
            "its tokenizer has .* entries, its model 3",
        ),
    ],
)
def test_archives_that_are_refused(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    arrays = _arrays()
    change(arrays)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(_write(tmp_path, arrays))
    assert "\n" not in str(caught.value)


def test_pickled_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, _arrays())
    content = path.read_bytes()
    named: dict[str, Any] = {f"params/{name}": array for name, array in _arrays().items()}
    np.savez(path, **{**named, "params/t": np.array([{}], dtype=object)})
    with pytest.raises(BundleError, match=r"siglip\.npz: .*allow_pickle"):
        open_bundle(path)
    for damaged in (b"", content[: len(content) // 2], b"PK" + bytes(100)):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"siglip\.npz: ") as caught:
            open_bundle(path)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_without_tokenizer_names_what_it_needs(tmp_path: Path) -> None:
    path = _write(tmp_path, _arrays())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        BundleError, match=r"needs the tokenizer of its model: put tokenizer\.json or the sentencepiece model"
    ):
        open_bundle(path)
