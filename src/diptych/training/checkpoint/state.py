"""The state that a training step changes and that a checkpoint contains."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Stateful(Protocol):
    """Anything besides model and optimizers with a state to save, such as a weight average or a loss scaler."""

    def state_dict(self) -> dict[str, Any]:
        """The state as nested dicts of tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore a state that `state_dict` returned."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that a training step changes."""

    model: nn.Module
    """The model: not wrapped, wrapped by DDP, or sharded by `fully_shard`."""
    optimizers: tuple[torch.optim.Optimizer, ...]
    """Optimizers with disjoint parameters."""
    extras: dict[str, Stateful] = field(default_factory=dict)
    """Further objects with a state, by name."""
