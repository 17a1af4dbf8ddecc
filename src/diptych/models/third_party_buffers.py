"""Compute buffers of timm and transformers towers that weights files do not contain, such as relative position indices.

A tower is built on the `meta` device before its weights are loaded, so these buffers have no data. A second instance computes
them. Its parameters stay on the `meta` device, so no memory is allocated for weights.

A few bytes of a config can stand for millions of layers, so building a tower stops at a number of tensors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

MAX_PARAMETERS = 20_000
"""Maximum number of tensors of another library's tower. The largest models of timm have about 3,000."""


@contextmanager
def limited_parameters() -> Iterator[None]:
    """Stop building modules at more than `MAX_PARAMETERS` tensors in this thread, with a RuntimeError."""
    thread, count = get_ident(), 0

    def check(_module: nn.Module, _name: str, _parameter: nn.Parameter) -> None:
        nonlocal count
        count += get_ident() == thread
        if count > MAX_PARAMETERS:
            raise RuntimeError(f"it has more than {MAX_PARAMETERS:,} tensors")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules with parameters on the `meta` device and buffers on the CPU."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    with patch.object(nn.Module, "register_parameter", register_on_meta), torch.device("cpu"):
        yield


def fill_buffers(module: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Fill the buffers and tensor attributes of a module that are still on the `meta` device.

    Args:
        module: the module; its parameters are not changed.
        build: function that builds the same module.
    """
    if not any(tensor.device.type == "meta" for part in module.modules() for tensor in _tensors(part).values()):
        return
    with parameters_on_meta():
        other = build()
    for mine, theirs in zip(module.modules(), other.modules(), strict=True):
        for name, tensor in _tensors(mine).items():
            if tensor.device.type == "meta":
                _set(mine, name, _tensors(theirs)[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers and tensor attributes of a module, without those of its children."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    return plain | {name: value for name, value in module._buffers.items() if value is not None}


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    if name in module._buffers:
        module._buffers[name] = tensor
    else:
        setattr(module, name, tensor)
