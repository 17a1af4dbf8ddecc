"""Compile the towers of a model for training, block by block, without changes to the model's code (`torch.compile`).

All image blocks have the same shapes, and text blocks are compiled for any number of tokens, so the blocks of a tower share one
graph and the first step compiles everything. In evaluation mode, blocks run uncompiled, because the last batch of a validation
has another size and would be compiled again.
"""

import functools
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from diptych.core.cache import cache_folder
from diptych.core.errors import ConfigError
from diptych.models import attention
from diptych.models.clip import CLIP
from diptych.models.text_transformer import TextTransformer
from diptych.models.vision_transformer import VisionTransformer
from diptych.training.optim.schedule import Schedule

CompileSetting: TypeAlias = bool | Literal["auto"]
"""Whether a run compiles its towers; `auto` decides by its device and its length."""
_MIN_STEPS, _MIN_MINUTES = 1000, 10.0
"""Approximate length of the shortest run that is faster with compilation, which takes about 30 s and saves 20 to 35 ms per step
of `vit-b-32` with 1,024 pairs on an H200 (`docs/log.md`)."""


def decide_compile(setting: CompileSetting, device: torch.device, schedule: Schedule) -> tuple[bool, str | None]:
    """Whether a run compiles its towers, and a message for the user if `auto` decided it for a long run on a GPU.

    Args:
        setting: the setting of the run.
        device: the device of the model.
        schedule: length of the run.

    >>> from diptych.training.optim.schedule import ScheduleConfig
    >>> decide_compile("auto", torch.device("cuda"), Schedule(ScheduleConfig(epochs=9), steps_per_epoch=100))
    (False, None)
    """
    if setting != "auto":
        return setting, None
    num_steps, minutes = schedule.total_steps, schedule.config.minutes
    is_long = (num_steps or 0) >= _MIN_STEPS or (minutes or 0.0) >= _MIN_MINUTES
    if device.type != "cuda" or not is_long:
        return False, None
    missing = missing_compiler(device)
    if missing is not None:
        return False, f"The towers are not compiled: `torch.compile` {missing}"
    length = f"{minutes:g} minutes" if num_steps is None else f"{num_steps:,} steps"
    return True, (
        f"The towers are compiled, since the run has {length}; the first step takes up to a minute (compile=false avoids it)"
    )


def missing_compiler(device: torch.device) -> str | None:
    """What `torch.compile` lacks on this machine, and how to install it; None if nothing is missing."""
    if device.type == "cpu":
        found = _finds(os.environ.get("CXX"), ("g++", "clang++"))
        return None if found else "on a CPU needs a C++ compiler: install g++, or set CXX"
    if device.type != "cuda":
        return None
    if find_spec("triton") is None:
        return "on a GPU needs Triton: pip install triton"
    if not _finds(os.environ.get("CC"), ("gcc", "clang")):
        return "on a GPU needs a C compiler: install gcc, or set CC"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "on a GPU needs the header files of Python: install python3-dev"
    return None


def _finds(named: str | None, usual: Iterable[str]) -> bool:
    return any(map(shutil.which, [named] if named else usual))


def compile_blocks(model: CLIP, *, image_sizes_vary: bool = False) -> None:
    """Compile the towers of a model in place; in evaluation mode they run as before. Call it before DDP or FSDP wraps them.

    Vision transformers are compiled block by block, other image towers as a whole. Text blocks are compiled for any number of
    texts and tokens. They are not compiled on CPUs, because each batch has other buckets. transformers encoders are never
    compiled, because their masks depend on values. The names of weights do not change. Compiled code is stored in the cache
    folder, or in the folder that `TORCHINDUCTOR_CACHE_DIR` names.

    Args:
        model: the model.
        image_sizes_vary: whether a run resizes its images (`schedule.small_first`). Then the image tower is not compiled,
            because each size would be compiled in the middle of the run.

    Raises:
        ConfigError: a compiler is missing.
    """
    device = model.log_logit_scale.device
    missing = missing_compiler(device)
    if missing is not None:
        raise ConfigError(f"compile is true, which {missing}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    _configure_compiler()
    attention.load_varlen(device)
    if isinstance(model.image_tower, VisionTransformer):
        _compile_methods(model.image_tower.transformer.blocks, ("forward", "pooled"), dynamic=False)
    elif not image_sizes_vary:
        _compile_methods([model.image_tower], ("forward",), dynamic=None)
    if isinstance(model.text_tower, TextTransformer) and device.type not in attention.BUCKETED_DEVICES:
        _compile_methods(model.text_tower.transformer.blocks, ("forward", "pooled"), dynamic=True)


def _configure_compiler() -> None:
    # Loading the compiler takes a second.
    import torch._dynamo.config as dynamo  # noqa: PLC0415
    import torch._inductor.config as inductor  # noqa: PLC0415
    from torch.fx.experimental import _config as shapes  # noqa: PLC0415

    # Sizes that are equal in the first batch, such as the numbers of texts and of tokens, differ later.
    shapes.use_duck_shape = False
    # DDP would split blocks that are larger than its buckets.
    dynamo.optimize_ddp = False
    # Otherwise kernels are selected by their measured time.
    inductor.deterministic = torch.are_deterministic_algorithms_enabled()
    # Advice against fp32, which the user chose, and a note on inputs of blocks, of which the compiler reads `grad`.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")


def _compile_methods(modules: Iterable[nn.Module], names: Iterable[str], *, dynamic: bool | None) -> None:
    """Give the modules a class whose methods of these names are compiled. A copy of a module has that class, too."""
    modules = list(modules)
    plain = type(modules[0])
    assert all(type(module) is plain for module in modules)
    methods = {name: _compiled_in_training(getattr(plain, name), dynamic=dynamic) for name in names}
    compiled = type(f"Compiled{plain.__name__}", (plain,), methods)
    for module in modules:
        module.__class__ = compiled


def _compiled_in_training(method: Callable[..., Any], *, dynamic: bool | None) -> Callable[..., Any]:
    compiled = torch.compile(method, dynamic=dynamic)

    @functools.wraps(method)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (compiled if self.training else method)(self, *args, **kwargs)

    return call
