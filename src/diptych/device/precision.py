"""Data types in which a model computes."""

from typing import Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""Data type of matrix products and convolutions."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of each precision."""


def lacks_bf16(device: torch.device) -> bool:
    """Whether a device is a CUDA GPU that can only emulate bf16."""
    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
