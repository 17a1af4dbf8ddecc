"""Convert float32 ONNX graphs to fp16 and int8.

`write_image_graph` and `write_text_graph` (`export/graphs.py`) write the float32 graphs. The converted graphs have the same
inputs and outputs. The embeddings are normalized to unit length in float32.

Shapes: B images, H W height and width in pixels, R rows of an embedding table, W width of a token.
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int8
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.precision import GraphPrecision
from diptych.core.telemetry import disable_telemetry
from diptych.export.graphs import TOWER, quiet, save_graph
from diptych.models.config import ConvNetConfig, ResNetConfig
from diptych.runtime.onnx_config import precision_suffix

if TYPE_CHECKING:
    import onnx_ir

_STATIC_OPS = ["Conv", "Add", "Relu", "AveragePool", "MatMul", "Gemm"]
MIN_TABLE_ROWS = 1024
"""Embedding tables with fewer rows, such as position embeddings, stay in float32 in an int8 graph."""
_STAGED_KINDS = (ResNetConfig.kind, ConvNetConfig.kind)
_MAX_FP16 = float(np.finfo(np.float16).max)


def with_precision(path: Path, precision: GraphPrecision) -> Path:
    """Return the path of a graph in another precision, next to the float32 graph.

    Args:
        path: path of the float32 graph.
        precision: the precision.

    >>> with_precision(Path("onnx/text_model.onnx"), "int8").name
    'text_model_int8.onnx'
    """
    return path.with_name(f"{path.stem}{precision_suffix(precision)}{path.suffix}")


def to_fp16(path: Path) -> Path:
    """Write a copy of a graph with weights and computation in float16, and return its path.

    Weights outside the range of float16 are clamped.

    Args:
        path: a float32 graph of `write_image_graph` or `write_text_graph`. The copy is written next to it.
    """
    import onnx_ir  # noqa: PLC0415  (of the extra for exports)

    full, half = onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16
    model = onnx_ir.load(path)
    graph = model.graph
    nodes = list(graph)
    in_fp32 = _normalization(graph)
    in_fp16 = [node for node in nodes if node not in in_fp32]
    raw = in_fp32[0].inputs[0]
    assert raw is not None
    for value in [*graph.inputs, *graph.initializers.values()]:
        users = [node for node, _ in value.uses() if node not in in_fp32]
        if value.dtype != full or not users:
            continue
        if value.const_value is None or len(users) < len(value.uses()):
            _cast(graph, value, half, users=users)
        else:
            _halve(value)
    for node in in_fp16:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == full:
            node.attributes["to"] = onnx_ir.AttrInt64("to", half)
        for value in node.outputs:
            if value.dtype == full:
                value.dtype = half
    _cast(graph, raw, full, users=in_fp32)
    result = with_precision(path, "fp16")
    save_graph(model, result)
    return result


def to_int8(path: Path, *, calibration: Iterable[Float32[ndarray, "B 3 H W"]] | None = None) -> Path:
    """Write a copy of a graph with int8 weights, and return its path.

    Transformers are quantized dynamically: weights per output channel, activations per tensor at run time, and large embedding
    tables per row. Convolutional networks are quantized statically: `calibration` determines the ranges of the activations.
    Weights use 7 of the 8 bits, because x86 CPUs without VNNI add pairs of 8-bit products in 16 bits, which can overflow.

    Args:
        path: a float32 graph of `write_image_graph` or `write_text_graph`. The copy is written next to it.
        calibration: batches of normalized pixels of typical images, for a `ResNetConfig` or `ConvNetConfig`. It is ignored for
            other towers.

    Raises:
        ConfigError: a convolutional network has no calibration images.
    """
    import onnx_ir  # noqa: PLC0415  (of the extra for exports)

    model = onnx_ir.load(path)
    kind, result = model.metadata_props.get(TOWER), with_precision(path, "int8")
    with tempfile.TemporaryDirectory() as folder, quiet():
        if kind in _STAGED_KINDS:
            batches = iter(calibration or ())
            first = next(batches, None)
            if first is None:
                raise ConfigError(f"int8 needs images to calibrate a {kind}; pass some, or choose fp16")
            _quantize_static(path, Path(folder), chain([first], batches))
        else:
            _quantize_dynamic(model, Path(folder))
        smaller = onnx_ir.load(Path(folder) / _RESULT)
        smaller.metadata_props.clear()
        save_graph(smaller, result, metadata=model.metadata_props)
    return result


_INPUT, _RESULT = "input.onnx", "int8.onnx"


def _quantize_dynamic(model: "onnx_ir.Model", folder: Path) -> None:
    """Quantize the linear layers and the large embedding tables of a transformer."""
    disable_telemetry()
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415  (takes a second to import)

    _quantize_tables(model.graph)
    stacked = [node.name for node in model.graph if node.op_type == "MatMul" and _num_dims(node.inputs[1]) == 3]
    save_graph(model, folder / _INPUT)
    quantize_dynamic(
        folder / _INPUT,
        folder / _RESULT,
        op_types_to_quantize=["MatMul"],  # Includes `Gemm`, which is split into `MatMul` and `Add`.
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=stacked,  # Per-channel scales support matrices only.
        use_external_data_format=True,
    )


def _quantize_static(path: Path, folder: Path, batches: Iterator[Float32[ndarray, "B 3 H W"]]) -> None:
    """Quantize a convolutional network. The ranges of the activations are measured on `batches`."""
    disable_telemetry()
    from onnxruntime.quantization import (  # noqa: PLC0415  (takes a second to import)
        CalibrationDataReader,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"pixel_values": batch}

    quant_pre_process(
        path,
        folder / _INPUT,
        skip_symbolic_shape=True,  # Shape inference fails on dimensions that depend on the batch size.
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        external_data_location=f"{_INPUT}_data",
    )
    quantize_static(
        folder / _INPUT,
        folder / _RESULT,
        Reader(),
        op_types_to_quantize=_STATIC_OPS,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def _quantize_tables(graph: "onnx_ir.Graph") -> None:
    """Replace large embedding tables with int8 rows and one float32 scale per row."""
    import onnx_ir  # noqa: PLC0415  (of the extra for exports)

    for node in [node for node in graph if node.op_type == "Gather"]:
        table, index = node.inputs
        assert table is not None
        array = None if table.const_value is None else table.const_value.numpy()
        if array is None or array.ndim != 2 or len(array) < MIN_TABLE_ROWS:
            continue
        rows, scale = _quantize_rows(array)
        inputs = []
        for name, array in ((f"{table.name}_int8", rows), (f"{table.name}_scale", scale)):
            inputs.append(onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name)))
            graph.register_initializer(inputs[-1])
        numbers = onnx_ir.node("Gather", [inputs[0], index])
        scales = onnx_ir.node("Gather", [inputs[1], index])
        as_float = onnx_ir.node("Cast", [numbers.outputs[0]], {"to": onnx_ir.DataType.FLOAT})
        product = onnx_ir.node("Mul", [as_float.outputs[0], scales.outputs[0]])
        graph.insert_before(node, [numbers, scales, as_float, product])
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], product.outputs[0])
        graph.remove(node, safe=True)
        if not table.uses():
            del graph.initializers[str(table.name)]


def _quantize_rows(table: Float32[ndarray, "R W"]) -> tuple[Int8[ndarray, "R W"], Float32[ndarray, "R 1"]]:
    """Quantize each row of a table. Return int8 rows and one scale per row, whose products approximate the table.

    >>> rows, scale = _quantize_rows(np.array([[-127.0, 1.0], [0.0, 0.0]], dtype=np.float32))
    >>> rows.tolist(), scale.tolist()
    ([[-127, 1], [0, 0]], [[1.0], [1.0]])
    """
    largest = np.abs(table).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(table / scale).astype(np.int8), scale


def _normalization(graph: "onnx_ir.Graph") -> list["onnx_ir.Node"]:
    """The nodes that normalize the embeddings, starting with the one that computes the L2 norm."""
    nodes = [[node for node in graph if node.op_type == "ReduceL2"][-1]]
    for node in graph:
        if any(value is not None and value.producer() in nodes for value in node.inputs):
            nodes.append(node)
    return nodes


def _halve(value: "onnx_ir.Value") -> None:
    """Convert an initializer to float16. Infinities, which masks contain, are not clamped."""
    import onnx_ir  # noqa: PLC0415  (of the extra for exports)

    assert value.const_value is not None
    array = value.const_value.numpy()
    clamped = np.where(np.isinf(array), array, array.clip(-_MAX_FP16, _MAX_FP16)).astype(np.float16)
    value.const_value = onnx_ir.tensor(clamped, name=value.name)
    value.dtype = onnx_ir.DataType.FLOAT16


def _cast(
    graph: "onnx_ir.Graph", value: "onnx_ir.Value", dtype: "onnx_ir.DataType", *, users: Iterable["onnx_ir.Node"]
) -> None:
    """Insert a cast of a value to another data type, and connect `users` to its result."""
    import onnx_ir  # noqa: PLC0415  (of the extra for exports)

    cast = onnx_ir.node("Cast", [value], {"to": dtype})
    cast.outputs[0].dtype = dtype
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    for user in users:
        for position, used in enumerate(user.inputs):
            if used is value:
                user.replace_input_with(position, cast.outputs[0])


def _num_dims(value: "onnx_ir.Value | None") -> int:
    """Number of dimensions of a constant; 0 for other values."""
    return 0 if value is None or value.const_value is None else len(value.const_value.shape)
