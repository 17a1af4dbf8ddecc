"""ONNX Runtime stores no identifier of the machine, and starts no uploads."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import diptych
import numpy as np
from diptych.index.products import float_products
float_products(np.ones((1, 2), np.float32), np.ones((1, 2), np.float16))
diptych.load(sys.argv[1]).encode_texts(["a dog"])
"""


def _stored(onnx_folder: Path, home: Path) -> set[str]:
    """Names of the files that a process which runs graphs leaves in its home directory."""
    home.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if key not in {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    }
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(onnx_folder)],
        check=True,
        timeout=120,
        env={**environment, "HOME": str(home)},
    )
    return {path.name for path in home.rglob("*") if path.is_file() and "diptych" not in path.parts}


def test_nothing_is_stored(onnx_folder: Path, tmp_path: Path) -> None:
    assert _stored(onnx_folder, tmp_path / "home") == set()
