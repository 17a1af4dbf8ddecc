"""The Lion optimizer, which updates by the sign of a momentum."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from diptych.training.optim.base import GroupwiseOptimizer, Share
from diptych.training.parallel.tensors import local


class Lion(GroupwiseOptimizer):
    """Lion with decoupled weight decay (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2).

    Every weight changes by exactly the learning rate. Use a learning rate 3 to 10 times smaller than AdamW's and a weight decay
    larger by the same factor (sec. 5). The optimizer state is one momentum per weight, half the size of AdamW's.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate, above 0.
        betas: decay rates of the update's interpolation and of the momentum, each within [0, 1).
        weight_decay: decoupled weight decay, at least 0.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any], *, share: Share
    ) -> None:
        (beta_1, beta_2), lr = group["betas"], group["lr"]
        momenta = [local(self._momentum(parameter)) for parameter in parameters]
        parameters = [local(parameter) for parameter in parameters]
        gradients = [local(gradient) for gradient in gradients]
        update = torch._foreach_mul(momenta, beta_1)
        torch._foreach_add_(update, gradients, alpha=1 - beta_1)
        torch._foreach_sign_(update)
        torch._foreach_mul_(parameters, 1 - share * lr * group["weight_decay"])
        if isinstance(share, float):
            torch._foreach_add_(parameters, update, alpha=-lr * share)
            torch._foreach_lerp_(momenta, gradients, (1 - beta_2) * share)
            return
        torch._foreach_mul_(update, -lr * share)
        torch._foreach_add_(parameters, update)
        torch._foreach_mul_(momenta, 1 - (1 - beta_2) * share)
        torch._foreach_add_(momenta, gradients, alpha=1 - beta_2)  # The gradients are 0 if the update is skipped.
