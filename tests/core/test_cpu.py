"""CPU features that are read without torch."""

import os
import sys
from pathlib import Path

import pytest

from diptych.core import cpu
from diptych.core.cpu import cores_of_rank, cpu_has, cpu_vendor, has_fast_int8, num_cores

CPUINFO = """processor : 0
vendor_id : GenuineIntel
flags\t\t: fpu sse avx_vnni
vmx flags\t: amx_int8

processor : 1
vendor_id : GenuineIntel
flags\t\t: fpu avx_vnni amx_bf16
"""


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in place of `/proc/cpuinfo`; it does not exist yet."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "Path", lambda _name: path)
    for function in (cpu._flags, cpu_vendor):
        function.cache_clear()
        monkeypatch.setattr(cpu, function.__name__, function.__wrapped__)
    return path


def test_a_feature_is_one_of_all_cores(cpuinfo: Path) -> None:
    cpuinfo.write_text(CPUINFO)
    assert [cpu_has(name) for name in ("fpu", "sse", "avx_vnni", "amx_bf16", "amx_int8")] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert cpu_has("amx_int8", "avx_vnni")
    assert has_fast_int8()
    assert cpu.cpu_vendor() == "GenuineIntel"


def test_without_cpuinfo_nothing_is_known(cpuinfo: Path) -> None:
    assert not cpuinfo.exists()
    assert not cpu_has("fpu")
    assert not has_fast_int8()
    assert cpu.cpu_vendor() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/cpuinfo")
@pytest.mark.parametrize(
    "name", ["avx2", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16"]
)
def test_features_are_those_that_torch_finds(name: str) -> None:
    capabilities = pytest.importorskip("torch").cpu.get_capabilities()
    assert cpu_has(name) is bool(capabilities.get(name))


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(1, 1, 1), (8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_ranks_share_cores(monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert (num_cores(), cores_of_rank()) == (cores, expected)
