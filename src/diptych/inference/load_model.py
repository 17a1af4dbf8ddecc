"""Load PyTorch models for inference, on a device and in a precision."""

from pathlib import Path

import torch

from diptych.bundle.folder import Bundle
from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.weights_facts import WeightsFacts
from diptych.core.errors import ConfigError
from diptych.core.precision import InferencePrecision
from diptych.cpu import linear
from diptych.device.hardware import choose_device, cpu_has, has_fast_int8
from diptych.device.precision import DTYPES, lacks_bf16
from diptych.images.transforms import Pixels
from diptych.models.clip import CLIP
from diptych.models.int8 import to_int8
from diptych.models.text_transformer import TextTransformer
from diptych.models.vision_transformer import VisionTransformer


def load_model(
    path: str | Path,
    *,
    device: str,
    precision: InferencePrecision,
    facts: WeightsFacts,
    image_px: Pixels | None,
    progress: bool = True,
) -> tuple[Bundle, tuple[str, ...] | None]:
    """Open a model (`open_bundle`), convert it to a precision and move it to a device.

    Returns:
        The bundle, and the identities that it had before the conversion; None if it was not converted.

    Raises:
        BundleError: there is no model at `path`, it is damaged, or it has features that Diptych does not support.
        ConfigError: the machine does not support the device or precision, or an argument does not match the model.
    """
    selected = choose_device(device)
    _check_precision(precision, selected)
    bundle = open_bundle(path, facts=facts, image_px=image_px, progress=progress)
    identities = None
    if precision != "fp32":
        identities = bundle.identities()  # Before the weights are converted.
        _convert(bundle.model, precision)
    bundle.model.to(selected)
    if precision == "fp32":
        linear.optimize(bundle.model)
    return bundle, identities


def _check_precision(precision: InferencePrecision, device: torch.device) -> None:
    """Raise a ConfigError if the device does not support the precision or is slower with it than in float32."""
    lacking = None
    if device.type == "cpu":
        lacking = {
            "int8": None if has_fast_int8() else "int8 on a CPU needs VNNI instructions",
            "bf16": None if cpu_has("avx512_bf16", "amx_bf16") else "bf16 on a CPU needs AVX512-BF16 or AMX",
            "fp16": None if cpu_has("avx512_fp16", "amx_fp16") else "fp16 on a CPU needs AVX512-FP16 or AMX",
        }.get(precision)
    elif precision == "int8":
        lacking = f"int8 is for CPUs, and the device is {device}"
    elif precision == "bf16" and lacks_bf16(device):
        lacking = "this GPU has no bf16; it has fp16"
    if lacking:
        raise ConfigError(f"{lacking}; fp32 is faster on this device")


def _convert(model: CLIP, precision: InferencePrecision) -> None:
    if precision != "int8":
        model.convert(DTYPES[precision])
        return
    if not isinstance(model.image_tower, VisionTransformer):
        tower = {"convnet": "a convolutional network", "resnet": "a ResNet", "timm": "a timm model"}[
            model.config.image.kind
        ]
        raise ConfigError(
            f"int8 is for vision transformers, and this image tower is {tower}; its ONNX export can be int8"
        )
    if not isinstance(model.text_tower, TextTransformer):
        raise ConfigError(
            "int8 is for Diptych's own text towers, and this one is a transformers model; its ONNX export can be int8"
        )
    to_int8(model)
