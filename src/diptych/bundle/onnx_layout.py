"""Recognize an ONNX folder. `diptych.runtime.onnx_folder` reads it."""

from pathlib import Path

from diptych.core.errors import BundleError

ONNX_CONFIG = "diptych/config.json"
"""Path of Diptych's own config within an ONNX folder."""


def is_onnx_folder(path: Path) -> bool:
    """Whether a folder was written by `diptych export --to onnx`.

    >>> is_onnx_folder(Path("no such folder"))
    False
    """
    return (path / ONNX_CONFIG).is_file()


def refuse_half_export(path: Path, name: str) -> None:
    """Raise an error if a folder has a part of an ONNX export, and no other model.

    Raises:
        BundleError: it has graphs but neither `ONNX_CONFIG` nor weights.
    """
    if is_onnx_folder(path) or not any(path.glob("onnx/*_model*.onnx")):
        return
    if not any(file.suffix in {".safetensors", ".bin", ".pt", ".pth"} for file in path.iterdir()):
        raise BundleError(f"{name}: is an incomplete export; {ONNX_CONFIG} is missing: export the bundle again")
