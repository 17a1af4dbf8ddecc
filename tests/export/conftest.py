"""A bundle that is exported once for several tests."""

from pathlib import Path
from typing import NamedTuple

import pytest

from diptych.bundle.folder import Bundle
from diptych.export.onnx_folder import export_onnx
from diptych.export.report import OnnxReport
from tests.export.makers import CONVNET, small_bundle


class Exported(NamedTuple):
    bundle: Bundle
    folder: Path
    report: OnnxReport


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The model that `small-data` trains, but smaller, in fp32."""
    bundle, folder = small_bundle("learned-bpe", CONVNET), tmp_path_factory.mktemp("export") / "onnx"
    return Exported(bundle, folder, export_onnx(bundle, folder))
