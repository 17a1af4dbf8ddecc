"""Which device to use, and what its CPU can."""

from functools import cache
from pathlib import Path

import torch

from diptych.core.errors import ConfigError
from diptych.core.launch import is_launched, local_rank


def choose_device(name: str = "auto") -> torch.device:
    """The named device, or for `auto` the fastest this machine has: a CUDA GPU, Apple's, or the CPU.

    Of processes that were launched together each gets a GPU of its own.

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
    """Whether this CPU has instructions that sum products of eight-bit integers (VNNI)."""
    return cpu_has("avx512_vnni", "avx_vnni", "amx_int8")


def cpu_has(*instructions: str) -> bool:
    """Whether this CPU has any of them, as `torch.cpu.get_capabilities` names them."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in instructions)


@cache
def cpu_vendor() -> str | None:
    """Who made this CPU, as it says itself (`GenuineIntel`, `AuthenticAMD`); None where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    named = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("vendor_id")]
    return named[0] if named else None
