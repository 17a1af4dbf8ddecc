"""Disable usage data that dependencies send to their vendors."""

import os


def disable_telemetry() -> None:
    """Disable the telemetry of ONNX Runtime. Call this before each import of `onnxruntime`.

    Official builds of ONNX Runtime store an identifier of the machine in the cache folder and send usage data to Microsoft,
    unless the environment variable `ORT_DISABLE_TELEMETRY` is 1 at the first import (see `Privacy.md` in the package). A value
    that is already set, such as 0, is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
