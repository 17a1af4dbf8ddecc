"""Error messages for missing packages that belong to an extra of Diptych."""

from importlib.util import find_spec

from diptych.core.errors import ConfigError

_EXTRAS = {
    "torch": ("train", "PyTorch"),
    "safetensors": ("train", "PyTorch"),
    "jinja2": ("train", "Jinja2"),
    "matplotlib": ("train", "matplotlib"),
    "tensorboard": ("train", "TensorBoard"),
    "onnx": ("train", "onnx"),
    "onnxscript": ("train", "onnxscript"),
    "sentencepiece": ("sentencepiece", "sentencepiece"),
    "sklearn": ("probe", "scikit-learn"),
    "optuna": ("tune", "Optuna"),
    "fastapi": ("serve", "FastAPI"),
    "uvicorn": ("serve", "Uvicorn"),
}
"""The extra that installs a top-level module, and the name to show for the package, by module name."""


def missing_extra(error: ImportError, what: str = "this") -> ConfigError | None:
    """Return the error to show for an import that failed because of a missing extra; None if it failed for another reason.

    Args:
        error: the exception of the import.
        what: the feature that needs the package; it is the subject of the message.

    >>> str(missing_extra(ModuleNotFoundError("No module named 'torch'", name="torch"), "training"))
    "training needs PyTorch, which is not installed: pip install 'diptych[train]'"
    """
    found = _EXTRAS.get((error.name or "").partition(".")[0]) if isinstance(error, ModuleNotFoundError) else None
    if found is None:
        return None
    extra, package = found
    return ConfigError(f"{what} needs {package}, which is not installed: pip install 'diptych[{extra}]'")


def has_torch() -> bool:
    """Whether PyTorch is installed. It is not imported."""
    return find_spec("torch") is not None
