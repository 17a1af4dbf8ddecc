"""Load the weights of a bundle, after checking the header of the file against the config."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from diptych.bundle.renaming import shape_text
from diptych.core.errors import BundleError
from diptych.models.clip import CLIP
from diptych.models.config import STAGED, CLIPConfig, TextConfig, ViTConfig

_FLOATS = {"F64", "F32", "BF16", "F16"}


def load_weights(config: CLIPConfig, path: Path) -> CLIP:
    """Return the model with the weights of a safetensors file, in evaluation mode.

    The size of the file bounds memory and time: a config that does not fit the file is rejected before any memory is allocated
    for layers.

    Raises:
        BundleError: the file is damaged, or its tensors do not fit the config; the message names the first difference.
    """
    try:
        model = _empty_model(config, path)
        model.load_state_dict(load_file(path), assign=True)
        model.fill_buffers()
    except SafetensorError as error:
        raise BundleError(f"{path}: is damaged ({error})") from None
    except RuntimeError as error:
        raise BundleError(f"{path}: does not fit its config.json: {' '.join(str(error).split())}") from None
    return model.eval()


def _empty_model(config: CLIPConfig, path: Path) -> CLIP:
    """Return the model without allocated weights, after checking that the header of the file has all of its tensors."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (the file is not a dict)
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
    num_blocks = _num_blocks(config)
    if num_blocks > len(shapes):
        raise BundleError(
            f"{path}: does not fit its config.json: the config has {num_blocks} blocks, the file only {len(shapes)} tensors"
        )
    model = CLIP.without_memory(config)
    difference = _first_difference(model.state_dict(), shapes, dtypes)
    if difference:
        raise BundleError(f"{path}: does not fit its config.json: {difference}")
    return model


def _num_blocks(config: CLIPConfig) -> int:
    """Return the number of blocks whose sizes are in the config; 0 for a tower of another library."""
    image, text = config.image, config.text
    num_text = text.layers if isinstance(text, TextConfig) else 0
    if isinstance(image, ViTConfig):
        return num_text + image.layers
    return num_text + (sum(image.layers) if isinstance(image, STAGED) else 0)


def _first_difference(
    expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> str | None:
    for name, tensor in expected.items():
        if name not in shapes:
            return f"{name} is missing"
        if shapes[name] != tuple(tensor.shape):
            return f"{name} is {shape_text(shapes[name])}, expected {shape_text(tensor.shape)}"
        is_float, is_int64 = dtypes[name] in _FLOATS, dtypes[name] == "I64"
        if tensor.is_floating_point() != is_float or (tensor.dtype == torch.int64) != is_int64:
            return f"{name} has dtype {dtypes[name]}"
    unexpected = shapes.keys() - expected.keys()
    return f"{min(unexpected)} is unexpected" if unexpected else None
