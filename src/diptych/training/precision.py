"""Precision of a training step. Weights, their averages, norms, the temperature and the loss are always float32."""

from typing import Literal, TypeAlias

import torch

from diptych.core.errors import ConfigError

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""Dtype of matrix products and convolutions. Because of the small range of fp16, gradients are scaled up for it."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: Precision, device: torch.device) -> str | None:
    """Check that a device supports a precision. Returns a warning if it is probably slow there, otherwise None.

    Raises:
        ConfigError: the device does not support the precision.
    """
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError("this GPU does not support bf16; set precision to fp16 or fp32")
    if device.type == "cpu" and precision != "fp32":
        return f"{precision} on a CPU is meant for tests: on most CPUs it is slower than fp32"
    return None


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A `torch.autocast` context for the precision; it does nothing for fp32."""
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """A loss scaler for fp16; disabled for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
