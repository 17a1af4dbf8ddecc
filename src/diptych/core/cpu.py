"""The number of cores, the instruction sets and the vendor of this CPU. Does not import torch."""

import os
from functools import cache
from pathlib import Path

from diptych.core.launched import local_size

INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instruction sets with dot products of 8-bit integers."""


def num_cores() -> int:
    """Number of CPU cores that this process may use."""
    # macOS and Windows lack `sched_getaffinity`.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_rank() -> int:
    """This process's share of the CPU cores: those that it may use, divided by the ranks on this machine. At least 1."""
    return max(1, num_cores() // local_size())


def has_fast_int8() -> bool:
    """Whether this CPU has instructions for dot products of 8-bit integers (VNNI or AMX)."""
    return cpu_has(*INT8_INSTRUCTIONS)


def cpu_has(*instructions: str) -> bool:
    """Whether this CPU has any of the instruction sets, named as in `/proc/cpuinfo`: `avx_vnni`, `avx512_bf16`, `amx_fp16`, ...

    Returns Returns False on systems other than Linux, which have no such file.
    """
    return not _flags().isdisjoint(instructions)


@cache
def cpu_vendor() -> str | None:
    """Return the vendor id of this CPU (`GenuineIntel`, `AuthenticAMD`), or None if `/proc/cpuinfo` does not contain one."""
    return next(iter(_values("vendor_id")), None)


@cache
def _flags() -> frozenset[str]:
    """The instruction sets that all cores have."""
    flags = [frozenset(value.split()) for value in _values("flags")]
    return frozenset.intersection(*flags) if flags else frozenset()


def _values(name: str) -> list[str]:
    """The values of a property in `/proc/cpuinfo`, one per core; an empty list if the file or the property is missing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for key, _, value in pairs if key.strip() == name]
