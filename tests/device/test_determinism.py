"""Deterministic algorithms within a block, and modes that are restored after it."""

import contextlib
import os

import pytest
import torch

from diptych.core.errors import ConfigError
from diptych.device.determinism import deterministic_algorithms

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def _no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, "")  # So that the test's own value is removed afterwards.
    monkeypatch.delenv(WORKSPACE)


def _modes() -> tuple[bool, bool, bool, bool]:
    is_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), is_warn_only, cudnn.deterministic, cudnn.benchmark


@pytest.mark.parametrize("before", [(False, False, False, True), (True, True, False, False)])
def test_modes_hold_within_the_block_and_are_restored(before: tuple[bool, bool, bool, bool]) -> None:
    usual = _modes()
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[2:]
    try:
        with contextlib.suppress(ZeroDivisionError), deterministic_algorithms():
            within = _modes()
            raise ZeroDivisionError
        assert within == (True, False, True, False)
        assert _modes() == before
    finally:
        torch.use_deterministic_algorithms(usual[0], warn_only=usual[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = usual[2:]


def test_it_does_nothing_unless_it_is_enabled() -> None:
    before = _modes()
    with deterministic_algorithms(False):
        assert _modes() == before
    assert WORKSPACE not in os.environ


def test_the_workspace_is_set_before_cuda_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with deterministic_algorithms():
        assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with deterministic_algorithms():  # The variable was set in time.
        pass
    monkeypatch.delenv(WORKSPACE)
    with pytest.raises(ConfigError, match=f"CUDA has started without {WORKSPACE}; set it to :4096:8"):
        deterministic_algorithms().__enter__()
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(ConfigError, match="is ':0:0'; set it to :4096:8"):
        deterministic_algorithms().__enter__()
    assert not torch.are_deterministic_algorithms_enabled()
