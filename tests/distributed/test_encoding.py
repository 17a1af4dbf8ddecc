"""Ranks that share the encoding of a validation find what one process does."""

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from diptych.device.distributed import ALONE
from tests.distributed.encoding import encode, results_of


@pytest.mark.filterwarnings("ignore:texts longer than")
def test_two_ranks_validate_as_one(tiny_bundle: Path, tmp_path: Path) -> None:
    multiprocessing.spawn(encode, (2, tmp_path, tiny_bundle), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    alone = results_of(tiny_bundle, ALONE)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert {name: found[name] for name in alone} == alone
        assert found["all"] == [0, 1]
        assert found["error"] == "the cable was pulled"
