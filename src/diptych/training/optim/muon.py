"""Muon: a momentum of which every direction is made equally long, as the step."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.training.optim.base import ByGroup

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(ByGroup):
    """Jordan et al. 2024, with steps as long as AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", sec. 2.2).

    PyTorch has one for matrices alone. This one takes convolutions, too, as matrices of one row an output channel, and computes
    in float32: in PyTorch's bfloat16 a CPU without instructions for it takes five times as long.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _move(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        keep, lr = group["momentum"], group["lr"]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            momentum = self._momentum(parameter).lerp_(gradient, 1 - keep)
            step = orthogonalized(gradient.lerp(momentum, keep).flatten(1))
            length = 0.2 * max(step.shape) ** 0.5
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(step.view_as(parameter), alpha=-lr * length)


def orthogonalized(matrix: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
    """The matrix with singular values of about one, within 0.68 and 1.13, by five Newton-Schulz iterations.

    An iteration multiplies the matrix X from the left by P = a + b G + c G^2, where G = X X'. The five P are multiplied with
    each other first, and G becomes P G P: with the wide matrix itself there are two products in place of ten.
    """
    (a, b, c), is_high = _COEFFICIENTS, matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_high else matrix).float()
    x = x / x.norm().clamp_min(1e-7)
    gram = x @ x.T
    a_one = a * torch.eye(len(gram), device=gram.device)
    product = None
    for left in reversed(range(_ITERATIONS)):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c).add_(a_one)
        product = factor if product is None else factor @ product
        if left:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    return (x.T if is_high else x).to(matrix.dtype)
