"""Run `diptych` without the packages of its extras: `python -m tests.runtime.without_torch COMMAND ...`."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

ABSENT = {
    "torch", "safetensors", "jinja2", "matplotlib", "tensorboard", "onnx", "onnxscript", "huggingface_hub", "transformers",
    "open_clip", "sklearn", "optuna", "scipy", "pandas", "torchvision",
}  # fmt: skip
"""Modules of extras, and of packages that only extras depend on."""


class Without(MetaPathFinder):
    """A finder that does not find the absent modules."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """What the other finder finds."""
        if fullname.partition(".")[0] in ABSENT:
            return None
        spec: ModuleSpec | None = self._finder.find_spec(fullname, path, target)
        return spec

    def invalidate_caches(self) -> None:
        """Called by importlib."""

    def __getattr__(self, name: str) -> Any:  # `importlib.metadata` calls methods that finders may lack.
        return getattr(self._finder, name)


def hide() -> None:
    """Make the absent modules impossible to import."""
    assert not ABSENT & {*sys.modules}
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]


if __name__ == "__main__":
    hide()
    from diptych.cli.main import run

    run()
