"""Names of the data types in which a model computes."""

from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""Data type of matrix products and convolutions."""
PrecisionSetting: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
"""A precision, or `auto` for the fastest that the device supports."""
InferencePrecision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]
"""Data type in which a loaded model computes embeddings."""
GraphPrecision: TypeAlias = Literal["fp32", "fp16", "int8"]
"""Data type of the weights of an ONNX graph. The file names of fp16 and int8 graphs end with it."""
