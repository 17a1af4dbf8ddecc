"""What a run carries from step to step, and what a checkpoint therefore holds."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Stateful(Protocol):
    """An average of weights, a loss scaler: whatever else a run carries along."""

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts, keyed by names, of tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over what `state_dict` gave."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All that a step changes."""

    model: nn.Module
    """As it is trained: bare, in DDP, or sharded by `fully_shard`."""
    optimizers: tuple[torch.optim.Optimizer, ...]
    """Each over parameters of its own."""
    extras: dict[str, Stateful] = field(default_factory=dict)
    """By name; what a run does not have is not in it."""
