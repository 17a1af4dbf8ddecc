"""Tests of this folder need a CUDA device; `make check-gpu` runs them."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.fail("no CUDA device; these tests are run by `make check-gpu` on a machine with one")
