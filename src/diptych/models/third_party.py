"""Import timm and transformers. Only this module imports them, and it works around a torchvision that does not match PyTorch.

Both libraries import torchvision, whose compiled library loads only with the PyTorch version that it was built for. With a
torchvision for CUDA next to a PyTorch for CPUs, which is common, the import fails at two object detection operators. Towers do
not use these operators, so this module declares them without an implementation, which is sufficient for the import.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import library

from diptych.core.errors import ConfigError

EXTRA = "pip install 'diptych[towers]'"
_MINOR_OFFSET = 15
"""torchvision 0.(N + 15) is built for torch 2.N."""


def import_timm() -> Any:
    """Return the module `timm`.

    Raises:
        ConfigError: it is not installed, or cannot be imported with the installed torchvision; the message names the remedy.
    """
    return _imported("timm", "a timm image tower")


def import_transformers() -> Any:
    """Return the module `transformers`.

    Raises:
        ConfigError: it is not installed, or cannot be imported with the installed torchvision; the message names the remedy.
    """
    return _imported("transformers", "a transformers text tower")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and log messages below errors."""
    logging = import_transformers().utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


@cache
def make_torchvision_importable() -> library.Library | None:
    """Declare two operators of torchvision if its compiled library does not load.

    The declarations exist as long as the returned object, which the cache of this function stores.
    """
    torchvision = find_spec("torchvision")
    if hasattr(torch.ops.torchvision, "nms"):  # Already imported or declared.
        return None
    for folder in (torchvision and torchvision.submodule_search_locations) or ():
        try:
            torch.ops.load_library(next(iter(sorted(Path(folder).glob("_C*.so"))), Path(folder) / "_C.so"))
        except OSError:
            return _declare_operators()
    return None


def _declare_operators() -> library.Library:
    declared = library.Library("torchvision", "FRAGMENT")
    for operator in [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]:
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return declared


@cache
def _imported(name: str, what: str) -> Any:
    missing = find_spec(name) is None
    if missing:
        raise ConfigError(f"{what} needs {name}, which is not installed: {EXTRA}")
    if find_spec("torchvision") is None and name == "timm":
        raise ConfigError(f"{what} needs torchvision, which is not installed: {_install_torchvision()}")
    make_torchvision_importable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The user cannot fix deprecations inside the packages.
            module = import_module(name)
            if name == "transformers":
                module.AutoModel  # noqa: B018  (It is imported on first use.)
            return module
    except Exception as error:  # Packages raise `RuntimeError` for operators that do not exist.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{what} needs {name}, which cannot be imported ({reason:.120}); if torchvision does not match torch "
            f"{torch.__version__}: {_install_torchvision()}"
        ) from None


def _install_torchvision() -> str:
    """Return the command that installs the torchvision version for the installed PyTorch.

    >>> _install_torchvision().startswith("pip install torchvision==0.")
    True
    """
    major, minor, patch = [*torch.__version__.partition("+")[0].split("."), "0"][:3]
    fits = int(major) == 2 and minor.isdigit() and patch.isdigit()
    return f"pip install torchvision==0.{int(minor) + _MINOR_OFFSET}.{patch}" if fits else "pip install torchvision"
