"""The precision of a run on a GPU; the capability and the name of the GPU are replaced."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych.core.precision import Precision, PrecisionSetting
from diptych.training.config import read_run_config
from diptych.training.precision import describe_precision, run_precision
from diptych.tuning.trial import _resumable
from tests.conftest import TINY_RUN

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("precision", "capability", "products"),
    [("bf16", (9, 0), "TF32"), ("fp16", (8, 0), "TF32"), ("fp32", (9, 0), "float32"), ("fp16", (7, 5), "float32")],
)
def test_float32_products_are_exact_only_in_float32(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, capability: tuple[int, int], products: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X1")
    assert describe_precision(precision, CUDA) == f"Precision {precision}, float32 products in {products}, on NVIDIA X1"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with run_precision(precision, CUDA):
        is_tf32 = products == "TF32"
        assert torch.get_float32_matmul_precision() == ("high" if is_tf32 else "highest")
        assert torch.backends.cudnn.allow_tf32 is is_tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_other_devices_are_left_alone() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with run_precision("bf16", torch.device("cpu")):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert describe_precision("bf16", torch.device("cpu")) is None


@pytest.mark.parametrize(("setting", "is_resumed"), [("auto", True), ("fp32", True), ("bf16", False)])
def test_auto_agrees_with_the_precision_that_a_run_chose(
    finished_run: Path, setting: PrecisionSetting, *, is_resumed: bool
) -> None:
    """A study goes on with the trials of its killed worker."""
    config = replace(TINY_RUN, precision=setting)
    assert read_run_config(finished_run / "config.yaml").precision == "fp32"
    assert (_resumable(config, finished_run) is not None) == is_resumed
