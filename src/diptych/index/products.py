"""Inner products of queries with many vectors: NumPy for float32, ONNX Runtime for float16 and eight-bit integers.

NumPy multiplies eight-bit integers without BLAS and converts float16 slowly; ONNX Runtime has fast kernels for both. Python
threads, one per core, prepare the integers and call ONNX Runtime. ONNX Runtime starts no threads of its own, because they would
not exist in a forked process and would spin while the encoder computes. Each product is a graph of one or two operators. This
module writes the graphs in ONNX's format (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), so that search does not need
the package `onnx`.
Shapes: C vectors, E embedding, Q queries.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int8
from numpy import ndarray

from diptych.core.cpu import cores_of_rank
from diptych.core.lists import chunks
from diptych.core.telemetry import disable_telemetry
from diptych.core.threads import in_threads

_ROWS = 1024
"""Number of vectors per call of ONNX Runtime, so that their integers and products fit in the cache of a core."""
_SIGN = 128
"""Zero point of the left matrix. ONNX Runtime is fast if the left matrix is unsigned, so 128 is added to its integers."""
_OPSET, _IR_VERSION = 14, 8
_FLOAT32, _UINT8, _INT8, _INT32, _FLOAT16 = 1, 2, 3, 6, 10
"""Numbers of the element types in ONNX's format."""

_Graph: TypeAlias = Literal["integers", "float16"]


def float_products(queries: Float32[ndarray, "Q E"], vectors: Float[ndarray, "C E"]) -> Float32[ndarray, "Q C"]:
    """Return the inner product of each query with each vector, summed in float32 in an unspecified order.

    Args:
        queries: queries.
        vectors: vectors in float32 or float16.

    >>> float_products(np.float32([[1, 2]]), np.float16([[3, 4], [5, 6]]))
    array([[11., 17.]], dtype=float32)
    """
    if vectors.dtype != np.float16:
        return queries @ np.asarray(vectors, dtype=np.float32).T
    products = np.empty((len(queries), len(vectors)), dtype=np.float32)
    session = _session("float16")

    def fill(rows: slice) -> None:
        for some in _blocks(rows):
            (products[:, some],) = session.run(None, {"queries": queries, "vectors": vectors[some]})

    in_threads(fill, _parts(len(vectors)))
    return products


def integer_products(queries: Int8[ndarray, "Q E"], vectors: Int8[ndarray, "C E"]) -> Float32[ndarray, "Q C"]:
    """Return the inner product of each query with each vector, converted to float32. It is correct only if `is_exact()`.

    >>> integer_products(np.int8([[127, -127]]), np.int8([[1, 2], [-128, 127]]))
    array([[  -127., -32385.]], dtype=float32)
    """
    products = np.empty((len(queries), len(vectors)), dtype=np.float32)
    inputs = {"queries": np.ascontiguousarray(queries.T), "zero": np.array(_SIGN, dtype=np.uint8)}
    session = _session("integers")

    def fill(rows: slice) -> None:
        buffer = np.empty((min(_ROWS, rows.stop - rows.start), vectors.shape[1]), dtype=np.uint8)
        for some in _blocks(rows):
            unsigned = buffer[: some.stop - some.start]
            np.bitwise_xor(vectors[some].view(np.uint8), np.uint8(_SIGN), out=unsigned)  # Plus 128, modulo 256.
            products[:, some] = session.run(None, {**inputs, "vectors": unsigned})[0].T

    in_threads(fill, _parts(len(vectors)))
    return products


@cache
def is_exact() -> bool:
    """Whether `integer_products` is correct on this CPU. Without VNNI, sums of two products saturate at 16 bits."""
    largest = np.full((1, 64), 127, dtype=np.int8)
    return bool(integer_products(largest, largest)[0, 0] == 64 * 127**2)


def _parts(num: int) -> list[slice]:
    """Ranges of `num` rows, one per thread. All of them except the last consist of whole blocks."""
    return list(chunks(num, _ROWS * max(1, -(-num // (_ROWS * cores_of_rank())))))


def _blocks(rows: slice) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, _ROWS):
        yield slice(start, min(start + _ROWS, rows.stop))


@cache
def _session(graph: _Graph) -> Any:
    disable_telemetry()
    import onnxruntime  # noqa: PLC0415  (a slow import, and most commands do not search)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(_MODELS[graph], options, providers=["CPUExecutionProvider"])


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a message in the format of Protocol Buffers."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: int) -> bytes:
    of_inputs = b"".join(_field(1, name) for name in inputs)
    of_attributes = (_field(1, name) + _field(3, value) + _field(20, 2) for name, value in attributes.items())
    return of_inputs + _field(2, output) + _field(4, operator) + b"".join(_field(5, one) for one in of_attributes)


def _value(name: str, element_type: int, *dims: str) -> bytes:
    """The name, element type and named dimensions of an input or output."""
    shape = b"".join(_field(1, _field(2, dim)) for dim in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, element_type) + _field(2, shape)))


def _model(nodes: Sequence[bytes], inputs: Sequence[bytes], output: bytes) -> bytes:
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "products")
    graph += b"".join(_field(11, value) for value in inputs) + _field(12, output)
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, _field(2, _OPSET))


_MODELS: dict[_Graph, bytes] = {
    "integers": _model(
        [_node("MatMulInteger", ["vectors", "queries", "zero"], "products")],
        [_value("vectors", _UINT8, "C", "E"), _value("queries", _INT8, "E", "Q"), _value("zero", _UINT8)],
        _value("products", _INT32, "C", "Q"),
    ),
    "float16": _model(
        [_node("Cast", ["vectors"], "floats", to=_FLOAT32), _node("Gemm", ["queries", "floats"], "products", transB=1)],
        [_value("vectors", _FLOAT16, "C", "E"), _value("queries", _FLOAT32, "Q", "E")],
        _value("products", _FLOAT32, "Q", "C"),
    ),
}
