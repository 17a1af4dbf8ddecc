"""Lion: the sign of a momentum as the step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from diptych.training.optim.base import ByGroup
from diptych.training.parallel.tensors import local


class Lion(ByGroup):
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2; the decay is decoupled.

    Every weight moves by the rate itself, so the rate is three to ten times smaller than AdamW's and the decay as many times
    larger (sec. 5). Its state is one momentum a weight, half of AdamW's.
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

    def _move(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        (beta_1, beta_2), lr = group["betas"], group["lr"]
        momenta = [local(self._momentum(parameter)) for parameter in parameters]
        parameters, gradients = (
            [local(parameter) for parameter in parameters],
            [local(gradient) for gradient in gradients],
        )
        update = torch._foreach_mul(momenta, beta_1)
        torch._foreach_add_(update, gradients, alpha=1 - beta_1)
        torch._foreach_sign_(update)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, update, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, 1 - beta_2)
