"""Which device to use."""

import torch

from diptych.core.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """The named device, or for `auto` the fastest this machine has: a CUDA GPU, Apple's, or the CPU.

    Raises:
        ConfigError: the machine has no such device.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in has.items() if there))
    if not has.get(name.split(":", maxsplit=1)[0], False):
        raise ConfigError(
            f"this machine has no device '{name}'; it has: {', '.join(k for k, there in has.items() if there)}"
        )
    return torch.device(name)
