"""ONNX graphs compute the embeddings of the model. Shapes: B images or texts, T tokens, E embedding."""

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from _pytest.mark import ParameterSet
from numpy import ndarray
from torch import Tensor, nn

from diptych.core.errors import ConfigError
from diptych.export.graphs import MAX_INLINE_BYTES, OPSET, data_path, write_image_graph, write_text_graph
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import (
    CLIPConfig,
    ConvNetConfig,
    ImageConfig,
    ResNetConfig,
    TextConfig,
    TextTowerConfig,
    ViTConfig,
)
from diptych.tokenizers.protocol import END, START, pad_and_mark
from tests.makers import ENCODER_TOWERS, TIMM_TOWERS, randomized

TOLERANCE = 1e-5
CONTEXT = 9
VIT = ViTConfig(image_px=(16, 32), patch_px=8, width=16, layers=2, heads=2)
SIGLIP_VIT = replace(VIT, layers=1, layout="siglip", pooling="attention", activation="gelu_tanh")
TEXT = TextConfig(vocab_size=60, context_length=CONTEXT, width=16, layers=2, heads=2)
IMAGE_TOWERS: dict[str, ImageConfig] = {
    "cls": replace(VIT, patch_dropout=0.5, dropout=0.1),
    "mean, conv stem": replace(VIT, layers=1, pooling="mean", stem="conv"),
    "attention, flat patches": replace(VIT, layers=1, pooling="attention", patch_px=(8, 16), activation="quick_gelu"),
    "siglip, attention": SIGLIP_VIT,
    "siglip, mean": replace(SIGLIP_VIT, pooling="mean"),
    "coca": replace(VIT, pooling="coca", pool_heads=4),
    "no norm before, norm before mean": replace(
        VIT, layers=1, pooling="mean", has_norm_pre=False, norms_before_mean=True
    ),
    "convnet": ConvNetConfig(image_px=(16, 32), stem_stride=2, widths=(8, 16), layers=(2, 1)),
    "resnet": ResNetConfig(image_px=(32, 64), layers=(1, 1, 1, 1), width=8, heads=4),
    **TIMM_TOWERS,
}
TEXT_TOWERS: dict[str, TextTowerConfig] = {
    "causal, eot": replace(TEXT, dropout=0.1),
    "causal, mean": replace(TEXT, layers=1, pooling="mean"),
    "bidirectional, eot": replace(TEXT, layers=1, is_causal=False),
    "bidirectional, mean": replace(TEXT, layers=1, is_causal=False, pooling="mean"),
    "bidirectional, cls": replace(TEXT, is_causal=False, pooling="cls"),
    "siglip, causal": replace(TEXT, layers=1, layout="siglip", pooling="eot"),
    "siglip, mean": replace(TEXT, layers=1, layout="siglip", is_causal=False, pooling="mean"),
    "siglip, end": replace(TEXT, layers=1, layout="siglip", is_causal=False, pooling="end"),
    "clipa": replace(TEXT, layers=1, layout="siglip", is_causal=False, has_projection_bias=False, norm_eps=1e-5),
    "no projection": replace(TEXT, layers=1, layout="siglip", is_causal=False, has_projection=False),
    "appended": replace(TEXT, pooling="appended"),
    **ENCODER_TOWERS,
}
_SLOW = {
    "siglip, mean",
    "causal, mean",
    "bidirectional, cls",
    "mean, conv stem",
    "siglip, causal",
    "bidirectional, mean",
    "resnet",
    "timm swin",
    "timm vit",
    "bert, pooler",
    "xlm-roberta, last",
}
"""An export takes three seconds, so `make check` skips towers whose parts occur in other towers."""


def _cases(towers: Iterable[str]) -> list[ParameterSet]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in _SLOW else []) for name in towers]


LENGTHS = ([0], [CONTEXT - 2], [0, 0], [7, 7], [1, 0, 4, 7, 2], [12], [30, 3, 7, 0])
"""Tokens of each text of a batch, without start and end token: the shortest, exactly the context, and longer than it."""


def _model(*, image: ImageConfig = VIT, text: TextTowerConfig = TEXT) -> CLIP:
    return randomized(CLIPConfig(embed_dim=16, image=image, text=text))


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def _image_difference(model: CLIP, session: onnxruntime.InferenceSession) -> float:
    sizes = height_width(model.config.image.image_px)
    worst = 0.0
    for batch in (1, 2, 5):
        pixels = torch.randn(batch, 3, *sizes, generator=torch.Generator().manual_seed(batch))
        (found,) = session.run(["image_embeds"], {"pixel_values": pixels.numpy()})
        with torch.no_grad():
            worst = max(worst, float(np.abs(found - model.encode_image(pixels).numpy()).max()))
    return worst


def _rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(END + 1, TEXT.vocab_size, length).tolist() for length in lengths]


def _padded(rows: list[list[int]], *, junk: int = 0) -> dict[str, ndarray]:
    ids = np.full((len(rows), max(map(len, rows))), junk, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (into, kept) in zip(rows, zip(ids, mask, strict=True), strict=True):
        into[: len(row)] = row
        kept[: len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _expected_texts(model: CLIP, rows: list[list[int]]) -> ndarray:
    encoded = pad_and_mark(rows, context_length=CONTEXT)
    with torch.no_grad():
        return model.encode_text(torch.from_numpy(encoded.ids), torch.from_numpy(encoded.lengths)).numpy()


@pytest.mark.parametrize("name", _cases(IMAGE_TOWERS))
def test_every_image_tower_gives_the_embeddings_of_the_model(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exporter prints nothing."""
    model, disabled = _model(image=IMAGE_TOWERS[name]), logging.root.manager.disable
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_image_graph(model, tmp_path / "vision_model.onnx")
    assert (caught, capfd.readouterr(), logging.root.manager.disable) == ([], ("", ""), disabled)
    session = _session(tmp_path / "vision_model.onnx")
    assert [(end.name, end.type, end.shape[0]) for end in (*session.get_inputs(), *session.get_outputs())] == [
        ("pixel_values", "tensor(float)", "batch_size"),
        ("image_embeds", "tensor(float)", "batch_size"),
    ]
    assert _image_difference(model, session) < TOLERANCE


@pytest.mark.parametrize("name", _cases(TEXT_TOWERS))
def test_every_text_tower_gives_the_embeddings_of_the_model(name: str, tmp_path: Path) -> None:
    """Texts that are too long may be complete, or truncated without an end token. A text ends at its first end token."""
    model = _model(text=TEXT_TOWERS[name])
    write_text_graph(model, tmp_path / "text_model.onnx", end_id=END)
    session = _session(tmp_path / "text_model.onnx")
    assert [(end.name, end.type, end.shape) for end in (*session.get_inputs(), *session.get_outputs())] == [
        ("input_ids", "tensor(int64)", ["batch_size", "text_length"]),
        ("attention_mask", "tensor(int64)", ["batch_size", "text_length"]),
        ("text_embeds", "tensor(float)", ["batch_size", 16]),
    ]
    for rows in [[[20, END, 30, 31], [21, 22]], *map(_rows, LENGTHS)]:
        expected = _expected_texts(model, rows)
        marked = [[START, *row, END] for row in rows]
        for inputs in (_padded(marked), _padded(marked, junk=END), _padded([row[:CONTEXT] for row in marked])):
            (found,) = session.run(None, inputs)
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0, err_msg=str(rows))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIP]:
    """A graph that was written from a model in training mode and half precision, and the model."""
    path = tmp_path_factory.mktemp("graph") / "vision_model.onnx"
    data_path(path).write_bytes(b"an older and longer file" * 10_000)
    model = _model(image=replace(VIT, layers=1, width=32)).convert(torch.float16).train()
    write_image_graph(model, path, metadata={"identity": "5f3a"})
    return path, model


def test_the_model_is_exported_as_it_is_evaluated_and_stays_as_it_is(written: tuple[Path, CLIP]) -> None:
    path, model = written
    assert model.training
    assert model.image_tower.get_parameter("projection.weight").dtype == torch.float16
    assert _image_difference(_float(model), _session(path)) < TOLERANCE


def _float(model: CLIP) -> CLIP:
    return CLIP.from_weights(model.config, {name: tensor.float() for name, tensor in model.state_dict().items()})


def test_the_graph_states_opset_tower_and_metadata(written: tuple[Path, CLIP]) -> None:
    graph = onnx.load(written[0], load_external_data=False)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", OPSET)]
    assert {item.key: item.value for item in graph.metadata_props} == {"identity": "5f3a", "tower": "vit"}
    onnx.checker.check_model(written[0])


def test_every_large_tensor_is_outside_of_the_graph(written: tuple[Path, CLIP]) -> None:
    path, _ = written
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    outside = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    inside = [len(tensor.raw_data) for tensor in tensors if tensor not in outside]
    assert max(inside) <= MAX_INLINE_BYTES
    assert {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"} == {
        data_path(path).name
    }
    stored = sum(int(entry.value) for tensor in outside for entry in tensor.external_data if entry.key == "length")
    assert stored <= data_path(path).stat().st_size < stored + 1024 * len(outside)


def test_no_path_of_this_machine_is_in_the_files(written: tuple[Path, CLIP]) -> None:
    for file in written[0].parent.iterdir():
        content = file.read_bytes()
        for path in (str(Path.home()), str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[2])):
            assert path.encode() not in content
        assert b".py" not in content


class _Tower(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, pixels: Tensor) -> Any:
        return self.function(pixels)


def _singular_values(pixels: Tensor) -> Tensor:
    return torch.linalg.svd(pixels).S


def _through_numpy(pixels: Tensor) -> Tensor:
    return torch.from_numpy(pixels.numpy() * 2)


def _of_one_batch_size(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).reshape(3, -1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_singular_values, r"ONNX has no equivalent of the operator aten\._linalg_svd"),
        (_through_numpy, r"numpy\(\) is not supported.* \(in `return torch.from_numpy\(pixels.numpy\(\) \* 2\)`\)"),
        (_of_one_batch_size, "an operator fixes batch_size to 3"),
    ],
)
def test_an_operator_that_cannot_be_exported_is_named(
    function: Callable[[Tensor], Any], message: str, tmp_path: Path
) -> None:
    model = CLIP(CLIPConfig(embed_dim=16, image=VIT, text=TEXT)).eval()
    vars(model)["_modules"]["image_tower"] = _Tower(function)
    with pytest.raises(ConfigError, match=f"^the image tower cannot be written as ONNX: .*{message}$"):
        write_image_graph(model, tmp_path / "vision_model.onnx")
    assert list(tmp_path.iterdir()) == []
