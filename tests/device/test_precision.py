"""The precision that `auto` selects, and float32 products in TF32. A fake GPU reports its features."""

import warnings

import pytest
import torch

from diptych.core.precision import Precision
from diptych.device.precision import float32_products, has_tf32, resolve_precision

CUDA = torch.device("cuda")


def _fake_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *, including_emulation: including_emulation or capability >= (8, 0)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("capability", "precision", "without_fp16"),
    [
        ((9, 0), "bf16", "bf16"),
        ((8, 6), "bf16", "bf16"),
        ((7, 5), "fp16", "fp32"),
        ((7, 0), "fp16", "fp32"),
        ((6, 1), "fp32", "fp32"),
    ],
)
def test_auto_is_the_fastest_that_a_gpu_supports(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: Precision, without_fp16: Precision
) -> None:
    _fake_gpu(monkeypatch, capability)
    assert resolve_precision("auto", CUDA) == precision
    assert resolve_precision("auto", CUDA, allows_fp16=False) == without_fp16
    assert resolve_precision("fp32", CUDA) == "fp32"
    assert has_tf32(CUDA) == (precision == "bf16")


def test_auto_is_float32_on_other_devices() -> None:
    assert [resolve_precision("auto", torch.device(kind)) for kind in ("cpu", "mps")] == ["fp32", "fp32"]
    assert not has_tf32(torch.device("cpu"))


def _modes() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("tf32", "within"), [(True, ("high", True)), (False, ("highest", False))])
def test_both_kinds_of_products_follow_the_mode_which_is_restored(*, tf32: bool, within: tuple[str, bool]) -> None:
    before = _modes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with float32_products(tf32=tf32):
            assert _modes() == within
            assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is tf32
            with float32_products(tf32=not tf32):
                pass
            assert _modes() == within
    assert _modes() == before
