"""The script that counts which of open_clip's models can be read, on a few of them."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "open_clip_coverage.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("open_clip_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "model",
    [
        "RN50", "ViT-H-14-378", "ViT-B-16-SigLIP2", "ViT-SO400M-14-SigLIP-384", "ViT-SO400M-16-SigLIP-i18n-256",
        "ViT-L-14-CLIPA", "coca_ViT-B-32", "ViT-H-14-worldwide", "MobileCLIP2-S0",
    ],
)  # fmt: skip
def test_one_model_of_each_kind_is_read(script: Any, model: str) -> None:
    results = script.check_all([model])
    assert results
    assert [result.reason for result in results] == [None] * len(results)


def test_a_tensor_of_another_shape_is_a_reason(script: Any) -> None:
    shapes = script.shapes_of("ViT-B-32")
    assert script.reason_against("ViT-B-32", "openai", {**shapes, "visual.proj": (768, 3)}) == (
        "the tensor visual.proj is 768x3, expected 768x512"
    )
    assert script.reason_against("ViT-B-32", "openai", {**shapes, "extra": (2,)}) == "the tensor extra is not expected"
    del shapes["logit_scale"]
    assert script.reason_against("ViT-B-32", "openai", shapes) == "the tensor logit_scale is missing"


def test_the_report_groups_reasons(script: Any) -> None:
    results = [
        script.Result(model="ViT-B-32", tag="openai", reason=None),
        script.Result(model="coca_ViT-B-32", tag="a", reason="vision_cfg has x 'one'"),
        script.Result(model="coca_ViT-B-32", tag="b", reason="vision_cfg has x 'two'"),
    ]
    text = script.report(results)
    assert "| **all** | **3** | **76** | **1** |" in text
    assert "- 2 pairs: vision_cfg has x '…'" in text
    assert len(script.FIRST) == 2
    assert sum(script.FIRST.values()) == 92
