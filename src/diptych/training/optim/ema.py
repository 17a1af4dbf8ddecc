"""Exponential moving average (EMA) of a model's weights, which often performs better than the latest weights."""

from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.errors import ConfigError, RunError
from diptych.training.optim.base import Share
from diptych.training.parallel.tensors import copy_tensors, local


class WeightAverage:
    """Exponential moving average of a model's weights, stored in float32 independent of the model's precision.

    The decay of update n is min(`decay`, (1 + n) / (10 + n)), so that the random initial weights have little influence in short
    runs. Buffers, such as batch norm statistics, are running means already and are copied without averaging.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the current weights of the model, on its device.

        Raises:
            ConfigError: the decay is outside [0, 1).
        """
        if not 0 <= decay < 1:
            raise ConfigError(f"the decay of the averaged weights is {decay}; it must lie within [0, 1)")
        self.decay = decay
        self._num_updates: Share = 0.0
        self.weights = {name: weight.to(torch.float32, copy=True) for name, weight in _weights(model).items()}
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    @property
    def num_updates(self) -> int:
        """Number of updates so far, without those that were skipped. Waits for the device."""
        return int(self._num_updates)

    @torch.no_grad()
    def update(self, model: nn.Module, *, share: Share = 1.0) -> None:
        """Update the average with the current weights of the model. Call it after each training step.

        Args:
            model: the model that is averaged.
            share: 1, or 0 if the step was skipped, which leaves the averaged weights unchanged.
        """
        if isinstance(share, float) and not share:
            return
        self._num_updates = self._num_updates + share
        weights = _weights(model)
        average = [local(weight) for weight in self.weights.values()]
        current = [local(weights[name]).float() for name in self.weights]
        num = self._num_updates
        if isinstance(num, float):
            torch._foreach_lerp_(average, current, weight=1 - min(self.decay, (1 + num) / (10 + num)))
        else:
            change = torch._foreach_sub(current, average)
            torch._foreach_mul_(change, (9 / (10 + num)).clamp(min=1 - self.decay) * share)
            torch._foreach_add_(average, change)
        _copy(dict(model.named_buffers()), self.buffers)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite weights and buffers of a model, unsharded or sharded like the averaged one. Its dtypes do not change."""
        _copy(self.weights, _weights(model))
        _copy(self.buffers, dict(model.named_buffers()))

    def state_dict(self) -> dict[str, Any]:
        """The complete state for `load_state_dict`. The tensors share memory with the average; they are not copies."""
        return {"num_updates": self.num_updates, "weights": dict(self.weights), "buffers": dict(self.buffers)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            RunError: names or shapes differ from those of this model; the average is then unchanged.
        """
        for own, given in ((self.weights, state["weights"]), (self.buffers, state["buffers"])):
            differing = {name for name in {*own, *given} if _shape(own, name) != _shape(given, name)}
            if differing:
                raise RunError(
                    f"the averaged weights belong to another model: {min(differing)} is missing or has another shape"
                )
        _copy(state["weights"], self.weights)
        _copy(state["buffers"], self.buffers)
        self._num_updates = float(state["num_updates"])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    copy_tensors([source[name] for name in target], list(target.values()))


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
