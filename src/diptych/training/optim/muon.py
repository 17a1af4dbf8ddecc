"""The Muon optimizer, which updates matrices by an orthogonalized momentum."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.training.optim.base import GroupwiseOptimizer, Share

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(GroupwiseOptimizer):
    """Muon (Jordan et al. 2024) with updates scaled to AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", 2.2).

    Unlike `torch.optim.Muon`, it also accepts convolutions, as matrices with one row per output channel. It computes in
    float32, because a CPU without bfloat16 instructions takes five times as long with PyTorch's bfloat16.

    Args:
        params: parameters with two dimensions or more, or parameter groups of such.
        lr: learning rate, above 0.
        momentum: decay rate of the momentum, within [0, 1).
        weight_decay: decoupled weight decay, at least 0.
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

    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any], *, share: Share
    ) -> None:
        beta, lr = group["momentum"], group["lr"]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            momentum = self._momentum(parameter).lerp_(gradient, (1 - beta) * share)
            update = orthogonalized(gradient.lerp(momentum, beta).flatten(1))  # Nesterov momentum, (out, in * kernel).
            scale = 0.2 * max(update.shape) ** 0.5
            parameter.mul_(1 - share * lr * group["weight_decay"])
            if isinstance(share, torch.Tensor):
                update.mul_(share)
            parameter.add_(update.view_as(parameter), alpha=-lr * scale)


def orthogonalized(matrix: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
    """The matrix with all singular values replaced by about 1 (between 0.68 and 1.13), by five Newton-Schulz iterations.

    Each iteration multiplies the matrix X from the left by P = aI + bG + cG^2, where G = XX'. The product of the five P is
    computed from G alone, which becomes PGP after each iteration. The wide matrix X is therefore part of two matrix products
    instead of ten.
    """
    (a, b, c), is_tall = _COEFFICIENTS, matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).float()
    x = x / x.norm().clamp_min(1e-7)
    gram = x @ x.T
    scaled_identity = a * torch.eye(len(gram), device=gram.device)
    product = None
    for left in reversed(range(_ITERATIONS)):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c).add_(scaled_identity)
        product = factor if product is None else factor @ product
        if left:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    return (x.T if is_tall else x).to(matrix.dtype)
