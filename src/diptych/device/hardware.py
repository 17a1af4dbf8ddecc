"""Select the device, and detect the features of the CPU."""

from functools import cache
from pathlib import Path

import torch

from diptych.core.errors import ConfigError
from diptych.device.launch import is_launched, local_rank


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
    return torch.device(name, local_rank()) if name == "cuda" and is_launched() else torch.device(name)


def has_fast_int8() -> bool:
    """Whether this CPU has instructions for dot products of 8-bit integers (VNNI or AMX)."""
    return cpu_has("avx512_vnni", "avx_vnni", "amx_int8")


def cpu_has(*instructions: str) -> bool:
    """Whether this CPU has any of the instruction sets, named as in `torch.cpu.get_capabilities`."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in instructions)


@cache
def cpu_vendor() -> str | None:
    """Return the vendor id of this CPU (`GenuineIntel`, `AuthenticAMD`), or None if `/proc/cpuinfo` does not contain one."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    vendors = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("vendor_id")]
    return vendors[0] if vendors else None
