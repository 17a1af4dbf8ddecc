"""Precision of a training step. Weights, their averages, norms, the temperature and the loss are always float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from diptych.core.errors import ConfigError
from diptych.core.precision import Precision
from diptych.device.precision import DTYPES, float32_products, has_tf32, lacks_bf16, lacks_fast_fp16


def check_precision(precision: Precision, device: torch.device) -> str | None:
    """Check that a device supports a precision. Returns a warning if it is probably slow there, otherwise None.

    Raises:
        ConfigError: the device does not support the precision.
    """
    if precision == "bf16" and lacks_bf16(device):
        other = "fp32" if lacks_fast_fp16(device) else "fp16 or fp32"
        raise ConfigError(f"this GPU does not support bf16; set precision to {other}")
    if precision == "fp16" and lacks_fast_fp16(device):
        raise ConfigError("this GPU does not support fast fp16 (it has no tensor cores); set precision to fp32")
    if device.type == "cpu" and precision != "fp32":
        return f"{precision} on a CPU is meant for tests: on most CPUs it is slower than fp32"
    return None


def uses_tf32(precision: Precision, device: torch.device) -> bool:
    """Whether float32 products of a run are computed in TF32: in bf16 and fp16 runs on GPUs that support TF32."""
    return precision != "fp32" and has_tf32(device)


def describe_precision(precision: Precision, device: torch.device) -> str | None:
    """A line on the precision of a run on a CUDA GPU; None on other devices."""
    if device.type != "cuda":
        return None
    products = "TF32" if uses_tf32(precision, device) else "float32"
    return f"Precision {precision}, float32 products in {products}, on {torch.cuda.get_device_name(device)}"


@contextmanager
def run_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within the block, float32 products on a CUDA GPU have the precision of the run (`uses_tf32`). Does nothing elsewhere."""
    if device.type != "cuda":
        yield
        return
    with float32_products(tf32=uses_tf32(precision, device)):
        yield


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A `torch.autocast` context for the precision; it does nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def share_overflow(scaler: torch.amp.GradScaler, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let `scaler` skip all optimizers if the gradients of one are not finite. Call it after it has unscaled them all."""
    if not scaler.is_enabled() or len(optimizers) < 2:
        return
    found = [scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"] for optimizer in optimizers]
    largest = torch.stack([flag for flags in found for flag in flags.values()]).amax(dim=0)
    for flags in found:
        for device in flags:
            flags[device] = largest


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """A loss scaler for fp16, whose range is small; disabled for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
