"""Tests on a GPU. `make check-gpu` runs them; `make check-gpu DEVICE=cpu` runs those of them that a CPU can run.

On a CPU, tests marked `cuda` are deselected and listed with their reasons. If a GPU is requested but missing, all tests fail.
"""

import os

import pytest
import torch

KIND = os.environ.get("DIPTYCH_TEST_DEVICE", "cuda")
"""`cuda` or `cpu`."""
if KIND == "cuda":
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # cuBLAS reads it once; some runs here are deterministic.
_not_run: list[tuple[str, str]] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that only a CUDA device can run, if the CPU was requested."""
    if KIND != "cpu":
        return
    with_reasons = [(item, marker.args[0]) for item in items if (marker := item.get_closest_marker("cuda"))]
    _not_run.extend((item.nodeid, reason) for item, reason in with_reasons)
    left_out = [item for item, _ in with_reasons]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was left out."""
    for node, reason in _not_run:
        terminalreporter.write_line(f"not run on a CPU: {node}: {reason}")


@pytest.fixture
def device() -> torch.device:
    """The device of these tests, with an index: cuda:0, or cpu."""
    if KIND == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.fail("no CUDA device; these tests need one, or DIPTYCH_TEST_DEVICE=cpu (make check-gpu DEVICE=cpu)")
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _has_the_device(device: torch.device) -> None:
    """Fail where the device is missing, also tests that do not use the fixture."""
