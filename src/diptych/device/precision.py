"""Data types in which a model computes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diptych.core.precision import Precision, PrecisionSetting

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of each precision."""


def resolve_precision(setting: PrecisionSetting, device: torch.device, *, allows_fp16: bool = True) -> Precision:
    """The precision of a setting on a device.

    For `auto`, it is bf16 on CUDA GPUs that support it, fp16 on older ones with tensor cores, and fp32 on all other devices.

    Args:
        setting: the setting.
        device: the device that computes.
        allows_fp16: whether `auto` may be fp16.

    >>> resolve_precision("auto", torch.device("cpu")), resolve_precision("bf16", torch.device("cpu"))
    ('fp32', 'bf16')
    """
    if setting != "auto":
        return setting
    if device.type != "cuda":
        return "fp32"
    if not lacks_bf16(device):
        return "bf16"
    return "fp16" if allows_fp16 and not lacks_fast_fp16(device) else "fp32"


def lacks_bf16(device: torch.device) -> bool:
    """Whether a device is a CUDA GPU that can only emulate bf16."""
    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


def lacks_fast_fp16(device: torch.device) -> bool:
    """Whether a device is a CUDA GPU without tensor cores, which multiplies fp16 no faster than float32 (before Volta)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0)


def has_tf32(device: torch.device) -> bool:
    """Whether a device can multiply float32 in TF32, which has the range of float32 and a mantissa of 10 bits (Ampere)."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Within the block, CUDA GPUs compute float32 matrix products and convolutions in TF32, or else in float32.

    PyTorch's own default is mixed: float32 for products, TF32 for convolutions. The modes for both are restored at the end.
    """
    products = torch.backends.cuda.matmul.fp32_precision == "tf32"
    convolutions = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    _set_tf32(products=tf32, convolutions=tf32)
    try:
        yield
    finally:
        _set_tf32(products=products, convolutions=convolutions)


def _set_tf32(*, products: bool, convolutions: bool) -> None:
    """Set both modes by the older of PyTorch's two interfaces: `torch.compile` reads it, and raises if both are mixed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
        torch.set_float32_matmul_precision("high" if products else "highest")
        torch.backends.cudnn.allow_tf32 = convolutions
