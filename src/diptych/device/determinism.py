"""Algorithms that give the same bits in every run on the same machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diptych.core.errors import ConfigError

_WORKSPACE, _DETERMINISTIC_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@contextmanager
def deterministic_algorithms(enabled: bool = True) -> Iterator[None]:
    """Within the block, PyTorch uses deterministic algorithms only; the previous mode is restored at its end.

    cuBLAS reads the environment variable `CUBLAS_WORKSPACE_CONFIG` when it starts. If it is not set, this sets it to `:4096:8`
    for the rest of the process. Therefore the block has to be entered before CUDA starts.

    Args:
        enabled: if False, this does nothing.

    Raises:
        ConfigError: CUDA has started in this process without the variable, or the variable has another value.
        RuntimeError: within the block, an operation has no deterministic algorithm.

    >>> with deterministic_algorithms():
    ...     torch.are_deterministic_algorithms_enabled()
    True
    >>> torch.are_deterministic_algorithms_enabled()
    False
    """
    if not enabled:
        yield
        return
    _set_workspace()
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn_before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = cudnn_before


def _set_workspace() -> None:
    value = os.environ.get(_WORKSPACE)
    if value is None and torch.cuda.is_initialized():
        raise ConfigError(
            f"deterministic is true, but CUDA has started without {_WORKSPACE}; set it to :4096:8 in the environment "
            "before the program starts"
        )
    if value is not None and value not in _DETERMINISTIC_WORKSPACES:
        raise ConfigError(f"deterministic is true, but {_WORKSPACE} is '{value}'; set it to :4096:8, or unset it")
    os.environ.setdefault(_WORKSPACE, _DETERMINISTIC_WORKSPACES[0])
