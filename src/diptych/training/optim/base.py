"""What Diptych's own optimizers have in common: a step that goes from group to group."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ByGroup(torch.optim.Optimizer):
    """An optimizer of which a subclass says how it moves those weights of a group that have gradients."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every weight that has a gradient; gives back the closure's loss."""
        loss = loss_of(closure)
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moved:
                self._move(moved, [parameter.grad for parameter in moved], group)
        return loss

    @abstractmethod
    def _move(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """Take one step with these."""

    def _momentum(self, parameter: Tensor) -> Tensor:
        """A running mean beside the weight, zero at first."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """What a closure gives that was handed to `step`, which must compute gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
