"""In which numbers a step computes. Weights, their averages, norms, temperature and loss are float32 in any case."""

from typing import Literal, TypeAlias

import torch

from diptych.core.errors import ConfigError

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""What products are computed in. fp16 has so small a range that gradients are scaled up for it."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: Precision, device: torch.device) -> str | None:
    """A warning where the device has the precision, but is slow at it; None if all is well.

    Raises:
        ConfigError: the device lacks it.
    """
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError("this GPU computes no bf16; set precision to fp16 or fp32")
    if device.type == "cpu" and precision != "fp32":
        return f"{precision} on a CPU is for trying things out: most CPUs are slower at it than at fp32"
    return None


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Products in the precision, within a `with`; nothing for fp32."""
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Keeps fp16's gradients within its range; does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
