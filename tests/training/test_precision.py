"""The precision of a run on a GPU; the capability and the name of the GPU are replaced."""

import pytest
import torch

from diptych.device.precision import Precision
from diptych.training.precision import describe_precision, run_precision

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
