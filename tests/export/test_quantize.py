"""fp16 and int8 graphs stay close to fp32. Shapes: B images or texts, H W pixels, E embedding."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.precision import GraphPrecision
from diptych.export.graphs import data_path, write_image_graph, write_text_graph
from diptych.export.quantize import MIN_TABLE_ROWS, to_fp16, to_int8, with_precision
from diptych.models.config import CLIPConfig, ConvNetConfig, ImageConfig, ResNetConfig, TextConfig, ViTConfig
from tests.makers import randomized

TEXT = TextConfig(vocab_size=2 * MIN_TABLE_ROWS, context_length=9, width=32, layers=1, heads=2)
VIT = ViTConfig(image_px=32, patch_px=8, width=32, layers=2, heads=2, stem="conv")
CONVOLUTIONAL: dict[str, ImageConfig] = {
    "convnet": ConvNetConfig(image_px=32, stem_stride=2, widths=(16, 32), layers=(1, 1)),
    "resnet": ResNetConfig(image_px=32, layers=(1, 1, 1, 1), width=8, heads=4),
}
END = 3


def _config(image: ImageConfig = VIT) -> CLIPConfig:
    return CLIPConfig(embed_dim=24, image=image, text=TEXT)


def _embeddings(path: Path, inputs: dict[str, ndarray]) -> ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (found,) = onnxruntime.InferenceSession(path, options).run(None, inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    return np.asarray(found)


def _pixels(batch: int, seed: int = 0) -> ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32), dtype=np.float32)


def _texts() -> dict[str, ndarray]:
    ids = np.random.default_rng(0).integers(END + 1, TEXT.vocab_size, (6, 7))
    mask = np.ones_like(ids)
    for row, length in enumerate((2, 3, 5, 6, 7, 7)):
        ids[row, length - 1 :] = END
        mask[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit") / "vision_model.onnx"
    write_image_graph(randomized(_config()), path, metadata={"identity": "5f3a"})
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text_model.onnx"
    write_text_graph(randomized(_config()), path, end_id=END)
    return path


@pytest.fixture(scope="module", params=["convnet", pytest.param("resnet", marks=pytest.mark.slow)])
def convolutional(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a convolutional network whose batch norms have the statistics of such pixels."""
    model = randomized(_config(CONVOLUTIONAL[request.param]))
    with torch.no_grad():
        model.train()
        for seed in range(40):
            model.image_tower(torch.from_numpy(_pixels(16, seed)))
    path = tmp_path_factory.mktemp("convolutional") / "vision_model.onnx"
    write_image_graph(model.eval(), path)
    return path


def _metadata(path: Path) -> dict[str, str]:
    return {item.key: item.value for item in onnx.load(path, load_external_data=False).metadata_props}


def _min_cosine(full: ndarray, other: ndarray) -> float:
    return float((full * other).sum(axis=1).min())


@pytest.mark.parametrize(("precision", "cosine", "share"), [("fp16", 0.9999, 0.51), ("int8", 0.995, 0.5)])
def test_a_vision_transformer_in_fewer_bits_gives_nearly_the_same_embeddings(
    precision: GraphPrecision, cosine: float, share: float, vit: Path
) -> None:
    result = to_fp16(vit) if precision == "fp16" else to_int8(vit)
    assert result == vit.with_name(f"vision_model_{precision}.onnx") == with_precision(vit, precision)
    assert _metadata(result) == {"identity": "5f3a", "tower": "vit"}
    for batch in (1, 3):
        inputs = {"pixel_values": _pixels(batch)}
        assert _min_cosine(_embeddings(vit, inputs), _embeddings(result, inputs)) > cosine
    assert data_path(result).stat().st_size < share * data_path(vit).stat().st_size


@pytest.mark.parametrize(("precision", "cosine", "share"), [("fp16", 0.9999, 0.51), ("int8", 0.995, 0.3)])
def test_a_text_transformer_in_fewer_bits_gives_nearly_the_same_embeddings(
    precision: GraphPrecision, cosine: float, share: float, text: Path
) -> None:
    result = to_fp16(text) if precision == "fp16" else to_int8(text)
    assert _min_cosine(_embeddings(text, _texts()), _embeddings(result, _texts())) > cosine
    assert data_path(result).stat().st_size < share * data_path(text).stat().st_size


def test_int8_has_one_scale_per_row_of_the_table_and_per_output_channel(text: Path) -> None:
    graph = onnx.load(to_int8(text)).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    rows = next(name for name in sizes if name.endswith("token_emb.weight_int8"))
    assert sizes[rows] == [TEXT.vocab_size, TEXT.width]
    assert sizes[rows.replace("_int8", "_scale")] == [TEXT.vocab_size, 1]
    ops = Counter(node.op_type for node in graph.node)
    per_channel = [size for name, size in sizes.items() if name.endswith("_scale") and len(size) == 1]
    assert (len(per_channel), ops["Gemm"]) == (ops["MatMulInteger"], 0)
    assert {size[0] for size in per_channel} == {TEXT.width, 4 * TEXT.width, 24}


def test_fp16_clamps_weights_beyond_its_range(text: Path, tmp_path: Path) -> None:
    graph = onnx.load(text)
    (norm,) = (tensor for tensor in graph.graph.initializer if tensor.name.endswith("norm_post.weight"))
    weight = onnx.numpy_helper.to_array(norm).copy()
    weight[0] = 1e6
    norm.CopyFrom(onnx.numpy_helper.from_array(weight, norm.name))
    onnx.save(graph, tmp_path / "text_model.onnx")
    halved = onnx.load(to_fp16(tmp_path / "text_model.onnx")).graph.initializer
    (norm,) = (tensor for tensor in halved if tensor.name.endswith("norm_post.weight"))
    found = onnx.numpy_helper.to_array(norm)
    assert found.dtype == np.float16
    assert found[0] == np.finfo(np.float16).max


def test_a_convolutional_network_is_quantized_with_calibration_images(convolutional: Path) -> None:
    calibration = (_pixels(16, seed) for seed in range(100, 104))
    result = to_int8(convolutional, calibration=calibration)
    for batch in (1, 5):
        inputs = {"pixel_values": _pixels(batch, 7)}
        assert _min_cosine(_embeddings(convolutional, inputs), _embeddings(result, inputs)) > 0.99
    graph = onnx.load(result, load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in types}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(node.input[1] in quantized for node in convolutions)


def test_a_convolutional_network_needs_calibration_images(convolutional: Path) -> None:
    for calibration in (None, list[ndarray](), iter(list[ndarray]())):
        with pytest.raises(
            ConfigError, match=r"^int8 needs images to calibrate a (convnet|resnet); pass some, or choose"
        ):
            to_int8(convolutional, calibration=calibration)
    result = to_fp16(convolutional)
    inputs = {"pixel_values": _pixels(3)}
    assert _min_cosine(_embeddings(convolutional, inputs), _embeddings(result, inputs)) > 0.9999
