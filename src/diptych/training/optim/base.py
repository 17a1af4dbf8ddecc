"""Base class of Diptych's own optimizers, and skipping of an update without reading a value from the device."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Share: TypeAlias = float | Float[Tensor, ""]
"""Factor of an update: 1 to apply it, 0 to skip it. It is a tensor if its value is known only on the device."""


@contextmanager
def skip_update_if(optimizer: torch.optim.Optimizer, found_inf: Float[Tensor, ""] | None) -> Iterator[None]:
    """Within the block, `optimizer.step` leaves parameters and state unchanged if `found_inf` is 1; it is not read on the host.

    Fused optimizers of PyTorch have the attribute `found_inf` for this purpose, and `GroupwiseOptimizer` has it, too.

    Args:
        optimizer: the optimizer; either fused, or a `GroupwiseOptimizer`.
        found_inf: 1 or 0, on the device of the parameters; None to apply every update.
    """
    if found_inf is None:
        yield
        return
    fused: Any = optimizer
    fused.found_inf = found_inf
    try:
        yield
    finally:
        del fused.found_inf


class GroupwiseOptimizer(torch.optim.Optimizer):
    """Optimizer whose subclasses implement `_update`, which updates the parameters of one group that have gradients.

    If the attribute `found_inf` is set to a tensor that is 1, `step` changes nothing. `torch.amp.GradScaler` sets it.
    """

    _step_supports_amp_scaling = True
    """Tells GradScaler to set `found_inf` instead of reading it on the host."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. Returns the loss of the closure, or None without a closure."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            share: Share = 1.0
            if found_inf is not None:
                # A factor of 0 does not remove a gradient that is not finite: 0 * inf is NaN.
                gradients = [torch.where(found_inf > 0, 0.0, gradient) for gradient in gradients]
                share = 1 - found_inf
            if parameters:
                self._update(parameters, gradients, group, share=share)
        return loss

    @abstractmethod
    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any], *, share: Share
    ) -> None:
        """Update the parameters of a group and their state in place, given one gradient for each.

        Args:
            parameters: the parameters.
            gradients: their gradients, which are 0 if `share` is 0.
            group: the settings of the group.
            share: factor of every change; 0 must leave parameters and state unchanged.
        """

    def _momentum(self, parameter: Tensor) -> Tensor:
        """The momentum buffer of a parameter, with the same shape; zeros at first."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum
