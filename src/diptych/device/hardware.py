"""Select the device. Functions for CPU features that do not need torch are in `core/cpu.py`."""

import torch

from diptych.core.cpu import INT8_INSTRUCTIONS, cores_of_rank, cpu_vendor
from diptych.core.errors import ConfigError
from diptych.core.launched import is_launched, local_rank

__all__ = [
    "HOST_DEVICES",
    "choose_device",
    "cores_of_rank",
    "cpu_has",
    "cpu_vendor",
    "decodes_in_processes",
    "has_fast_int8",
    "num_decoders",
    "reads_values",
]

HOST_DEVICES = frozenset({"cpu", "meta"})
"""Device types whose values the host can read without waiting for queued kernels."""


def reads_values(device: torch.device) -> bool:
    """Whether the host can read values on a device without waiting. On a GPU, a read waits for all queued kernels."""
    return device.type in HOST_DEVICES


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device, or for `auto` the fastest available one: a CUDA GPU, an Apple GPU, or the CPU.

    Each of several processes that were launched together gets its own GPU.

    Raises:
        ConfigError: the machine has no such device.
    """
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and not is_launched(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in has.items() if there)
    if not has.get(name.split(":", maxsplit=1)[0], False):
        raise ConfigError(
            f"this machine has no device '{name}'; it has: {', '.join(k for k, there in has.items() if there)}"
        )
    device = torch.device(name, local_rank()) if name == "cuda" and is_launched() else torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Events are recorded on the current device.
    return device


def decodes_in_processes(device: torch.device) -> bool:
    """Whether to decode images in processes, because the device encodes them much faster than threads decode them."""
    return device.type == "cuda"


def num_decoders(device: torch.device) -> int:
    """Number of images to decode at the same time while a device encodes others: two on a CPU, and one per core for a GPU."""
    return max(2, cores_of_rank()) if decodes_in_processes(device) else 2


def has_fast_int8() -> bool:
    """Whether this CPU has instructions for dot products of 8-bit integers (VNNI or AMX)."""
    return cpu_has(*INT8_INSTRUCTIONS)


def cpu_has(*instructions: str) -> bool:
    """Whether this CPU has any of the instruction sets, named as in `torch.cpu.get_capabilities`.

    Unlike `diptych.core.cpu.cpu_has`, which needs no torch, it knows them on every operating system.
    """
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in instructions)
