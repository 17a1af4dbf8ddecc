"""Precision of a training step. Weights, their averages, norms, the temperature and the loss are always float32."""

import torch

from diptych.core.errors import ConfigError
from diptych.device.precision import DTYPES, Precision, lacks_bf16


def check_precision(precision: Precision, device: torch.device) -> str | None:
    """Check that a device supports a precision. Returns a warning if it is probably slow there, otherwise None.

    Raises:
        ConfigError: the device does not support the precision.
    """
    if precision == "bf16" and lacks_bf16(device):
        raise ConfigError("this GPU does not support bf16; set precision to fp16 or fp32")
    if device.type == "cpu" and precision != "fp32":
        return f"{precision} on a CPU is meant for tests: on most CPUs it is slower than fp32"
    return None


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A `torch.autocast` context for the precision; it does nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """A loss scaler for fp16, whose range is small; disabled for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
